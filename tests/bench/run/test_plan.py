"""Plans: whom an experiment measures, and which run is void."""

from __future__ import annotations

from bench.endtoend import parser, plan_of
from bench.run.experiments import EXPERIMENTS
from bench.run.plan import faults
from bench.run.rows import REFERENCE
from bench.run.subjects import DIRECT, PLAIN, STUCK, WATCHED
from tests.bench.rows import rounds


def test_experiments_measure_variants_beside_what_they_vary() -> None:
    everything = plan_of(parser().parse_args([]))
    plain = plan_of(parser().parse_args(["--subject", "plain"]))
    assert everything.subjects_of(EXPERIMENTS["watch"]) == [DIRECT, WATCHED, STUCK]
    assert everything.subjects_of(EXPERIMENTS["memory"]) == [DIRECT, PLAIN]
    assert plain.subjects_of(EXPERIMENTS["watch"]) == plain.subjects_of(EXPERIMENTS["expiry"]) == []
    assert plain.subjects_of(EXPERIMENTS["memory"]) == [PLAIN]


def test_a_run_is_void_where_the_bare_responder_is_dear() -> None:
    where = {"scenario": REFERENCE}
    assert faults(rounds("bare", [2.0, 2.2, 9.0], "provider_cpu_us", **where)) == []
    (fault,) = faults(rounds("bare", [2.0, 2.3, 9.0], "provider_cpu_us", **where))
    assert fault.startswith(
        "the bare responder took 2.30 us of CPU per call (get 64 B, 64 in flight); the limit is 2.2"
    )
    assert fault.endswith("the machine is busy with something else, or its Python is slow (docs/performance.md)")
    assert faults(rounds("bare", [9.0], "provider_cpu_us")) == []  # of another scenario
