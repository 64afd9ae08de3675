"""Functions without a result: what their handlers and the core send, and what the caller learns."""

from __future__ import annotations

import asyncio

import pytest

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, encode_on_delete, encode_on_set
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import NoProviderError
from keyvalue_transport.wrpc.invocation import InvocationCounts
from tests.conftest import DEADLINE_S, NatsServer
from tests.invoking import invoke
from tests.recorded_replies import accept, ended, new_core, waited
from tests.transport.keyvalue.functions import (
    CALLER,
    FUNCTIONS,
    HANDLERS,
    KINDS,
    Kind,
    Noted,
    carried_out,
    connected,
    functions_of,
    handler_of,
    params_of,
    serving,
)
from tests.transport.nats.direct.scene import INBOX, PIECES, Direct, answer, hmsg, piece

END = ended("R_c")
each_function = pytest.mark.parametrize("name", functions_of(WATCHER))
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@each_function
@pytest.mark.parametrize("error", [RuntimeError("the disk is on fire"), OtherError("no result could say it")])
def test_an_error_sends_no_result(kind: Kind, name: str, error: Exception) -> None:
    with pytest.raises(type(error), match=f"^{error}$"):
        carried_out(handler_of(name, kind(Noted(error))), params_of(name))


@each_kind
@each_function
def test_a_function_without_a_result_sends_only_the_end(name: str, kind: Kind) -> None:
    """Cut the parameters anywhere."""
    params = params_of(name)
    for cut in range(len(params) + 1):
        service, invocations = Noted(), new_core()
        handler = handler_of(name, kind(service))
        step = invoke(invocations, handler, "R_c", CALLER, params[:cut], 0.0)
        sends = [*step.sends]
        if cut < len(params):
            step = invocations.receive_params("0", params[cut:], 0.0)
            sends += step.sends
        if step.waiting is not None:
            assert END not in sends
            sends += invocations.finish(step.waiting, waited(step.waiting.pending)).sends
        assert sends == [accept("R_c", "0" if cut < len(params) else None), END]
        assert invocations.counts == InvocationCounts(answered=1)
        assert service.calls == [(name, CALLER, *FUNCTIONS[name].call)]


@each_function
@pytest.mark.parametrize("alike", [True, False])
def test_a_function_without_a_result_sends_only_the_end_on_the_direct_path(
    loop: asyncio.AbstractEventLoop, name: str, alike: bool
) -> None:
    """Send more than two frames of one shape, so that the last are no longer parsed, and one with cut parameters."""
    direct = Direct(loop, alike)
    service = Noted()
    direct.routes.add(PIECES + 1, handler_of(name, service))
    params = params_of(name)
    whole = b"".join(hmsg(PIECES + 1, params, b"R_%d" % number) for number in range(4))
    sends = direct.read(whole + hmsg(PIECES + 1, params[:-1], b"R_c"), piece("0", params[-1:]))
    assert sends == [
        *(send for number in range(4) for send in answer(f"R_{number}")),
        Send("R_c", b"", f"{INBOX}.0"),
        *answer("R_c", handshake=False),
    ]
    assert [(call[0], *call[2:]) for call in service.calls] == [(name, *FUNCTIONS[name].call)] * 5
    assert direct.invocations.counts.answered == 5
    assert direct.invocations.counts.failed == 0


@each_kind
async def test_a_component_is_called_and_the_caller_learns_the_outcome(
    nats_server: NatsServer, path: str, kind: Kind
) -> None:
    service = Noted()
    value = bytes(range(256)) * 5000  # more than one message
    handlers = {WATCHER: HANDLERS[WATCHER](kind(service), ParameterLimits(), None)}
    async with (
        serving(nats_server, path, handlers) as prefix,
        connected(nats_server, "plain") as connection,
    ):
        invoker = Invoker(connection, {"source-id": "component", "link-name": "default"})

        async def tell(name: str, params: bytes) -> None:
            subject = invocation_subject(prefix, WATCHER, name)
            return await invoker.invoke(subject, params, decode_nothing, DEADLINE_S)

        await tell("on-set", encode_on_set(b"0", b"large", value))
        await tell("on-delete", encode_on_delete(b"0", b"key"))
        assert service.calls == [("on-set", CALLER, b"0", b"large", value), ("on-delete", CALLER, b"0", b"key")]
        service.answer = RuntimeError("the disk is on fire")
        await tell("on-delete", encode_on_delete(b"0", b"key"))  # it learns only that the call ended
        with pytest.raises(NoProviderError, match="nobody serves this function"):
            await tell("on-nothing", b"")
