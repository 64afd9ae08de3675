"""Small loads on real processes: each function, small and large values, both loops, and wrong or missing answers, which fail the load."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from bench.load.case import BATCHES, Case
from bench.load.generator_process import is_small
from bench.load.outcome import LoadError
from bench.load.workload import key_of
from bench.run.processes import ProviderProcess
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT, PLAIN, Subject
from keyvalue_transport.nats.client import KeyValueClient
from tests.bench.load.sockets import load_of
from tests.bench.loads import CALLS, MIB, little


@pytest.mark.parametrize(
    ("fields", "small"),
    [
        ({"function": "get"}, True),
        ({"function": "get", "value_bytes": 4096}, False),
        ({"function": "set", "value_bytes": 4096}, False),
        ({"function": "get-many", "batch_keys": 20}, True),
        ({"function": "get-many", "batch_keys": 100}, False),
        ({"function": "set-many", "batch_keys": 100}, True),
        ({"function": "list-keys"}, False),
    ],
)
def test_loads_of_small_messages_are_distinguished_from_others(fields: dict[str, object], small: bool) -> None:
    assert is_small(load_of(**fields)) is small


CASES = [
    *(Case(function=function, value_bytes=size) for function in ("get", "set") for size in (64, 64 * 1024)),
    *(Case(function=function, value_bytes=4 * MIB, in_flight=2) for function in ("get", "mixed")),
    *(Case(function=function) for function in ("exists", "delete", "increment", "get-many", "set-many", "delete-many")),
    *(Case(function="list-keys", page_keys=size) for size in (10, 1_000)),
    Case(function="get", headers="none", in_flight=1),
    Case(function="mixed", headers="traced", in_flight=512),
]


@pytest.mark.parametrize("subject", [DIRECT, BARE], ids=lambda subject: subject.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))
def test_every_call_is_answered_and_measured(stage: Stage, subject: Subject, case: Case) -> None:
    load = little(stage, subject, case)
    outcome = stage.generator.run(load)
    assert outcome.calls == load.calls
    assert outcome.verified > 0
    assert 0 < outcome.p50_us <= outcome.p99_us <= outcome.p999_us
    assert outcome.max_us >= outcome.p50_us
    assert min(outcome.cpu_us["provider"], outcome.cpu_us["nats"], outcome.generator_cpu_us) > 0
    if case.function == "list-keys":
        assert load.calls <= outcome.keys <= load.calls * case.page_keys
    else:
        assert outcome.keys == load.calls * (case.batch_keys if case.function in BATCHES else 1)


def test_the_plain_path_is_a_subject(stage: Stage) -> None:
    load = little(stage, PLAIN, Case(function="mixed"))
    assert stage.generator.run(load).calls == CALLS


def test_both_loops_end_when_they_should(stage: Stage) -> None:
    """A closed loop ends after its seconds, an open loop after the calls of its rate."""
    closed = replace(little(stage, DIRECT, Case(function="get")), calls=0, seconds=0.05, warm_calls=100)
    outcome = stage.generator.run(closed)
    assert outcome.seconds >= 0.05
    assert outcome.calls > 0
    outcome = stage.generator.run(replace(closed, rate=1_000.0, warm_calls=0))
    assert outcome.calls == 50
    assert outcome.seconds >= 0.05


@pytest.mark.parametrize("value_bytes", [64, 64 * 1024])
async def test_a_wrong_value_fails_the_load(stage: Stage, direct: ProviderProcess, value_bytes: int) -> None:
    load = replace(little(stage, DIRECT, Case(function="get", value_bytes=value_bytes), direct), keys=1, bucket="wrong")
    async with KeyValueClient(stage.nats.url, direct.prefix) as client:
        await client.set("wrong", key_of(0), b"x" * value_bytes)
    with pytest.raises(LoadError, match=r"call 0: found the result .*xxx.*, expected .*000000000000mno"):
        stage.generator.run(load)


@pytest.mark.parametrize(
    ("case", "fields", "error"),
    [
        (Case(function="get"), {"bucket": "empty"}, r"^call 0: found the result b'\\x00\\x00'"),
        (Case(function="list-keys", in_flight=1), {"keys": 201}, "the walk ended after 200 keys, expected 201"),
        (Case(function="get"), {"prefix": "default.nobody"}, r"^nobody serves get at default\.nobody$"),
    ],
    ids=["no value", "no key", "no provider"],
)
def test_a_missing_value_key_or_provider_fails_the_load(
    stage: Stage, direct: ProviderProcess, case: Case, fields: dict[str, object], error: str
) -> None:
    with pytest.raises(LoadError, match=error):
        stage.generator.run(replace(little(stage, DIRECT, case, direct), **fields))  # type: ignore[arg-type]


def test_missing_answers_fail_the_load(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), timeout_s=0.5)
    direct.popen.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LoadError, match=r"no answer for 0\.5 s \(timeout_s\), after 0 answers to \d+ calls"):
            stage.generator.run(load)
    finally:
        direct.popen.send_signal(signal.SIGCONT)
