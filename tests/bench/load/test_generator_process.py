"""A little load on real processes: each function, each class of value sizes, both loops; and that wrong or missing answers fail it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.load.generator_process import is_small, main
from bench.load.outcome import LoadError
from bench.load.workload import BATCHES, PAIR_RATE, key_of
from bench.run.processes import ProviderProcess
from bench.run.scenarios import Case
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT, PLAIN, Subject
from keyvalue_transport.nats.client import KeyValueClient
from tests.bench.load.sockets import load_of
from tests.bench.loads import CALLS, MIB, little, run_with_a_stall


@pytest.mark.parametrize(
    ("fields", "small"),
    [
        ({"function": "get"}, True),
        ({"function": "get", "value_bytes": 4096}, False),
        ({"function": "set", "value_bytes": 4096}, False),
        ({"function": "get-many", "batch_keys": 20}, True),
        ({"function": "get-many", "batch_keys": 100}, False),
        ({"function": "set-many", "batch_keys": 100}, True),
        ({"function": "increment"}, True),
        ({"function": "list-keys"}, False),
    ],
)
def test_loads_of_small_messages_are_told_from_others(fields: dict[str, object], small: bool) -> None:
    assert is_small(load_of(**fields)) is small


CASES = [
    *(Case(function=function, value_bytes=size) for function in ("get", "set") for size in (64, 1024, 64 * 1024)),
    *(Case(function=function, value_bytes=size, in_flight=4) for function in ("get", "set") for size in (MIB, 4 * MIB)),
    *(Case(function=function) for function in ("exists", "delete", "mixed", "increment")),
    *(Case(function=function, batch_keys=keys) for function in ("get-many", "set-many") for keys in (1, 100)),
    Case(function="get-many", value_bytes=4096),
    *(Case(function="list-keys", page_keys=size) for size in (10, 1_000)),
    *(Case(function="get", headers=headers) for headers in ("none", "traced")),
    Case(function="mixed", value_bytes=MIB, in_flight=2),
    Case(function="get", in_flight=1),
    Case(function="get", in_flight=512),
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


def test_the_plain_path_is_a_subject_too(stage: Stage) -> None:
    assert stage.generator.run(little(stage, PLAIN, Case(function="mixed"))).calls == CALLS


def test_a_closed_loop_ends_after_its_seconds(stage: Stage) -> None:
    load = replace(little(stage, DIRECT, Case(function="get")), calls=0, seconds=0.05, warm_calls=100)
    outcome = stage.generator.run(load)
    assert 0.05 <= outcome.seconds < 5
    assert outcome.calls > 0


def test_an_open_loop_makes_the_calls_of_its_rate(stage: Stage) -> None:
    load = replace(little(stage, DIRECT, Case(function="get", rate=1_000.0)), calls=0, seconds=0.2)
    outcome = stage.generator.run(load)
    assert outcome.calls == 200
    assert outcome.seconds > 0.19


@pytest.mark.parametrize("stopped", ["provider", "the server that both share"])
def test_calls_are_compared_with_those_that_are_due_at_the_same_moment(
    stage: Stage, direct: ProviderProcess, stopped: str
) -> None:
    """A stall of the provider is an excess, one that hits both is none."""
    load = little(stage, DIRECT, Case(function="get", rate=PAIR_RATE), direct)
    load = replace(load, calls=0, seconds=1.0, beside=stage.launch(BARE).prefix)
    process = direct if stopped == "provider" else stage.nats
    outcome = run_with_a_stall(stage, load, process, after_s=0.3, stall_s=0.3)
    assert outcome.calls == PAIR_RATE / 2
    assert outcome.max_us > 250_000
    assert (outcome.excess_us > 200_000) == (stopped == "provider")


def test_the_longest_page_is_told_by_the_clock_of_the_provider(stage: Stage) -> None:
    """A stall is none of its time; it is more than the mean, and no more than all."""
    load = replace(
        little(stage, DIRECT, Case(function="list-keys", in_flight=1, page_keys=10)), calls=2_000, keys=CALLS
    )
    provider = stage.provider(DIRECT, Case(function="list-keys", page_keys=10))
    outcome = run_with_a_stall(stage, load, provider, after_s=0.1, stall_s=0.5)
    assert outcome.max_us > 400_000
    assert outcome.cpu_us["provider"] <= outcome.page_cpu_us < 300_000


def test_without_closing_messages_whole_parameters_are_answered_too(stage: Stage) -> None:
    assert stage.generator.run(replace(little(stage, DIRECT, Case(function="get")), closing=False)).calls == CALLS


@pytest.mark.parametrize("value_bytes", [64, 64 * 1024])
async def test_a_wrong_value_fails_the_load(stage: Stage, direct: ProviderProcess, value_bytes: int) -> None:
    load = replace(little(stage, DIRECT, Case(function="get", value_bytes=value_bytes), direct), keys=1, bucket="wrong")
    async with KeyValueClient(stage.nats.url, direct.prefix) as client:
        await client.set("wrong", key_of(0), b"x" * value_bytes)
    with pytest.raises(LoadError, match=r"call 0: found the result .*xxx.*, expected .*000000000000mno"):
        stage.generator.run(load)


def test_a_value_that_is_not_there_fails_the_load(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), bucket="empty")
    with pytest.raises(LoadError, match=r"call 0: found the result b'\\x00\\x00'"):
        stage.generator.run(load)


def test_a_walk_that_misses_keys_fails_the_load(stage: Stage, direct: ProviderProcess) -> None:
    load = little(stage, DIRECT, Case(function="list-keys", in_flight=1), direct)
    with pytest.raises(LoadError, match="the walk ended after 200 keys, expected 201"):
        stage.generator.run(replace(load, keys=201))


def test_a_load_that_nobody_answers_fails(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), prefix="default.nobody")
    with pytest.raises(LoadError, match=r"^nobody serves get at default\.nobody$"):
        stage.generator.run(load)


def test_answers_that_do_not_come_fail_the_load(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), timeout_s=0.5)
    direct.popen.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LoadError, match=r"no answer for 0\.5 s \(timeout_s\), after 0 answers to 64 calls"):
            stage.generator.run(load)
    finally:
        direct.popen.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--url", "foo"], "bench.load.generator_process: the URL is 'foo', expected nats://HOST:PORT\n"),
        (
            ["--url", "{nats}", "--prefix", "default.nobody"],
            "bench.load.generator_process: nobody serves get at default.nobody\n",
        ),
        (
            ["--url", "{nats}", "--prefix", "{prefix}", "--bucket", "new", "--keys", "50"],
            "are the keys missing? set them with --function set --each-once --calls 50, and otherwise the same options\n",
        ),
    ],
)
def test_the_command_says_why_nothing_was_measured(
    stage: Stage, direct: ProviderProcess, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], expected: str
) -> None:
    words = {"{nats}": stage.nats.url, "{prefix}": direct.prefix}
    assert main([words.get(word, word) for word in arguments]) == 1
    assert capsys.readouterr().err.endswith(expected)


def test_the_command_sets_what_it_reads_as_it_advises(
    stage: Stage, direct: ProviderProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--url", stage.nats.url, "--prefix", direct.prefix, "--bucket", "advised", "--keys", "50"]
    assert main([*where, "--function", "set", "--each-once", "--calls", "50"]) == 0
    assert main([*where, "--seconds", "0.05"]) == 0
    assert '"verified"' in capsys.readouterr().out
