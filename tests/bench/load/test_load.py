"""A little load on real processes: each function, each class of value sizes, both loops; and that wrong or missing answers fail it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

from bench.load.generator_process import main
from bench.load.outcome import LoadError, Outcome
from bench.load.usage import UsageError, children, cpu_ns, has_ended, peak_bytes, resident_bytes, restart_peak
from bench.load.workload import BATCHES, PAIR_RATE, Load, bucket_of, key_of
from bench.run.experiments import EXPERIMENTS, Extent, Side
from bench.run.processes import GeneratorProcess, NatsProcess, Process, ProcessError, ProviderProcess, WatcherProcess
from bench.run.scenarios import Case
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT, EXECUTABLE, PLAIN, STUCK, WATCHED, Subject
from keyvalue_transport.nats.client import KeyValueClient
from tests.build import built_executable

CALLS = 200
#: Of a mebibyte and more.
LARGE_CALLS = 10
MIB = 2**20

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


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module")
def direct(stage: Stage) -> ProviderProcess:
    return stage.launch(DIRECT)


def little(stage: Stage, subject: Subject, case: Case, provider: ProviderProcess | None = None) -> Load:
    """The load of a case, with few calls; its bucket is filled."""
    provider = provider or stage.provider(subject, case)
    calls = LARGE_CALLS if case.value_bytes >= MIB else CALLS
    load = stage.load(provider, subject, case, f"{case.function}-{case.value_bytes}", seconds=0.0)
    load = replace(load, calls=calls, warm_calls=0, keys=calls, bucket=load.bucket if subject.is_store else "")
    if subject.is_store and case.function == "increment":
        return stage.fill_counters(load)
    if subject.is_store and case.function not in ("set", "set-many"):
        stage.fill(provider, load.bucket, load.keys, case.value_bytes)
    return load


def run_with_a_stall(stage: Stage, load: Load, process: Process, after_s: float, stall_s: float) -> Outcome:
    """Carry out a load while a process stands still for some time."""
    stage.generator.begin(load)
    time.sleep(after_s)
    process.popen.send_signal(signal.SIGSTOP)
    time.sleep(stall_s)
    process.popen.send_signal(signal.SIGCONT)
    return stage.generator.end()


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
    with pytest.raises(LoadError, match="found 200 keys at a walk's end, expected 201"):
        stage.generator.run(replace(load, keys=201))


def test_a_load_that_nobody_answers_fails(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), prefix="default.nobody")
    with pytest.raises(LoadError, match=r"^nobody serves get at default\.nobody$"):
        stage.generator.run(load)


def test_answers_that_do_not_come_fail_the_load(stage: Stage, direct: ProviderProcess) -> None:
    load = replace(little(stage, DIRECT, Case(function="get"), direct), timeout_s=0.5)
    direct.popen.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LoadError, match=r"found 0 answers to 64 calls, and no further one in 0\.5 s"):
            stage.generator.run(load)
    finally:
        direct.popen.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("is_filling", [False, True])
def test_a_provider_that_ends_fails_the_load_at_once(stage: Stage, is_filling: bool) -> None:
    with stage.launch(DIRECT) as provider:
        load = replace(little(stage, DIRECT, Case(function="get"), provider), calls=0, seconds=60.0)
        provider.popen.send_signal(signal.SIGSTOP)  # calls that it has taken are answered by nobody, NATS included
        kill = Timer(0.3, provider.popen.kill)
        kill.start()
        began_s = time.monotonic()
        with pytest.raises(LoadError, match=r"found .* answers to .* calls, and then the end of the process provider"):
            if is_filling:
                stage.fill(provider, "filling", 10_000_000, 64)
            else:
                stage.generator.run(load)
        assert time.monotonic() - began_s < 0.3 + 2.0  # it is looked for twice a second
        kill.join()


def test_a_row_that_cannot_be_measured_says_whose_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(load: Load) -> None:
        raise LoadError("wrong")

    monkeypatch.setattr(stage.generator, "run", fail)
    with pytest.raises(LoadError, match=r"^bare: exists, 64 in flight: wrong$"):
        stage.row("functions", Case(function="exists"), BARE, 0, 0.05)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--url", "foo"], "bench.load.generator_process: found the URL 'foo', allowed nats://HOST:PORT\n"),
        (
            ["--url", "{nats}", "--prefix", "default.nobody"],
            "bench.load.generator_process: nobody serves get at default.nobody\n",
        ),
        (
            ["--url", "{nats}", "--prefix", "{prefix}", "--bucket", "new", "--keys", "50"],
            "are the keys there? --function set --each-once --calls 50 sets them, the other options the same\n",
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


def test_large_parameters_leave_no_memory_behind(stage: Stage, direct: ProviderProcess) -> None:
    case = Case(function="set", value_bytes=MIB, in_flight=4)
    load = replace(stage.load(direct, DIRECT, case, bucket_of(MIB), 1.0), calls=100, warm_calls=0, keys=4)
    stage.generator.run(load)
    before = resident_bytes(direct.pid)
    stage.generator.run(load)
    grown = resident_bytes(direct.pid) - before
    assert grown < 32 * MIB, f"100 sets of 1 MiB over the same four keys grew the process by {grown / MIB:.0f} MiB"


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_gives_rows(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("bench.run.experiments.METRICS_ROUNDS", 1)
    monkeypatch.setattr("bench.run.experiments.WATCH_ROUNDS", 1)
    monkeypatch.setattr("bench.run.experiments.START_ROUNDS", 1)
    monkeypatch.setattr("bench.run.experiments.TURNS", 2)
    monkeypatch.setattr("bench.run.experiments.BEGIN_S", 0.05)
    extent = Extent(1, 0.05, growth_keys=[100, 300], pages_keys=2_000, expiry_keys=2_000, memory_calls=10)
    experiment = EXPERIMENTS[name]
    if name == "start":
        built_executable()  # else it is built with this process's environment, and measured by coverage
    rows = list(experiment.measure(stage, experiment.subjects, extent))
    assert {row.scenario for row in rows} == {name}
    assert {row.subject for row in rows} == {subject.name for subject in experiment.subjects}
    figures = {figure for row in rows for figure in row.figures}
    expected = {
        "growth": {"bytes_a_key", "scrape_us"},
        "memory": {"above_store_bytes"},
        "pages": {"keys_per_s", "excess_us", "page_cpu_us"},
        "expiry": {"bytes_a_key"},
        "start": {"start_s", "idle_bytes"},
        "watch": {"events_per_s"},
    }
    assert figures >= expected.get(name, set()) | {"calls_per_s", "provider_cpu_us"}


# Watchers.


def test_a_watcher_is_told_of_each_set(stage: Stage) -> None:
    with WatcherProcess("component", stage.nats, stage.directory, is_stuck=False) as watcher:
        assert watcher.told() == 0
        provider = stage.launch(WATCHED, watcher=watcher.name)
        stage.fill(provider, "watched", CALLS, 64)
        while watcher.told() < CALLS:
            pass
        side = Side(WATCHED, little(stage, WATCHED, Case(function="set"), provider), provider, watcher)
        side.run(stage.generator)
        assert set(side.figures()) == {"events_per_s"}
        while watcher.told() < 2 * CALLS:
            pass
        assert watcher.told() == 2 * CALLS


def test_a_watcher_that_nobody_calls_fails_the_load(stage: Stage, direct: ProviderProcess) -> None:
    with WatcherProcess("nobody", stage.nats, stage.directory, is_stuck=True) as watcher:
        side = Side(STUCK, little(stage, DIRECT, Case(function="set"), direct), direct, watcher)
        side.run(stage.generator)
        with pytest.raises(LoadError, match="nobody: found no call, expected them for what is set"):
            side.figures()


def test_a_watcher_that_cannot_listen_says_why(tmp_path: Path) -> None:
    with NatsProcess(tmp_path) as gone:
        pass
    with pytest.raises(ProcessError, match=r"(?s)late: it ended; .*Connect"):
        WatcherProcess("late", gone, tmp_path, is_stuck=False)


# Processes.


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("/nowhere/provider",), "broken-.*: .*No such file or directory"),
        ((sys.executable, "-c", "import sys; sys.exit('no data')"), "(?s)it ended with exit status 1; .*no data"),
    ],
)
def test_a_provider_that_does_not_start_says_why(stage: Stage, command: Sequence[str], error: str) -> None:
    with pytest.raises(ProcessError, match=error):
        stage.launch(Subject("broken", tuple(command)))


def test_a_load_generator_that_ended_says_so(stage: Stage, tmp_path: Path) -> None:
    with GeneratorProcess(tmp_path) as generator:
        generator.popen.kill()
        generator.popen.wait()
        with pytest.raises(ProcessError, match="load: it ended"):
            generator.run(Load(url=stage.nats.url, prefix="default.kv"))


def test_an_executable_that_cannot_be_built_ends_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.run.experiments.ROOT", tmp_path)
    build = tmp_path / "scripts" / "build"
    build.parent.mkdir()
    build.write_text("#!/bin/sh\nexit 3\n")
    build.chmod(0o700)
    extent = Extent(1, 0.05, growth_keys=[], pages_keys=1, expiry_keys=1, memory_calls=1)
    with pytest.raises(ProcessError, match="scripts/build: it ended with exit status 3"):
        next(EXPERIMENTS["start"].measure(stage, [EXECUTABLE], extent))


def test_the_cost_of_a_process_is_read(stage: Stage) -> None:
    pid = stage.nats.pid
    assert cpu_ns(pid) > 0
    restart_peak(pid)
    assert peak_bytes(pid) >= resident_bytes(pid) - MIB > 0


@pytest.mark.parametrize("read", [cpu_ns, peak_bytes, resident_bytes, restart_peak, children])
def test_a_process_that_is_not_there_has_no_cost(stage: Stage, tmp_path: Path, read: object) -> None:
    with stage.launch(BARE) as provider:
        pass
    assert callable(read)
    with pytest.raises(UsageError, match=f"of process {provider.pid}: .*it has ended$"):
        read(provider.pid)


def test_a_process_that_has_ended_is_told_from_one_that_runs() -> None:
    popen = subprocess.Popen(("cat",), stdin=subprocess.PIPE)
    assert not has_ended(popen.pid)
    popen.kill()
    while not has_ended(popen.pid):  # nobody has asked yet how it ended
        pass
    popen.communicate()
    assert has_ended(popen.pid)
