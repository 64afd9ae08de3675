"""A call that is made again, and must wait once more. test_invocation.py tests calls that need not."""

from __future__ import annotations

from typing import Any

import pytest

from keyvalue_transport.wrpc.handler import ANONYMOUS, Again
from keyvalue_transport.wrpc.repeated import MustWait
from tests.invoking import invoke
from tests.recorded_replies import Later, new_core


@pytest.mark.parametrize("is_again", [True, False])
def test_a_call_that_is_made_again_may_wait_for_something_else(is_again: bool) -> None:
    invocations = new_core()
    sources: list[Any] = [object(), object()]
    later = Later(sources[1])
    returns = [Again(sources[0]), Again(sources[1]) if is_again else later, b"result of val"]
    step = invoke(invocations, lambda *_: returns.pop(0), "client", ANONYMOUS, b"\x00", 0.0)
    assert step.waiting is not None
    with pytest.raises(MustWait) as more:
        step.waiting.pending.encode(lambda: None)
    assert more.value.pending.answer is sources[1]
    assert is_again or more.value.pending is later
    assert more.value.pending.encode(lambda: b"result of val") == b"result of val"
