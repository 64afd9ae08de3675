"""The overview picture: when it is drawn, and its axes."""

from __future__ import annotations

from pathlib import Path

from bench.report.plots import draw_overview, overview
from bench.run.results import Row
from tests.bench.rows import run_of

ROWS = [
    Row(
        scenario="in-flight",
        case=f"{function} {calls}",
        fields={"function": function, "in_flight": calls},
        subject=subject,
        round=number,
        figures={
            "calls_per_s": 1e5 / calls,
            "provider_cpu_us": 9 / calls,
            "p50_us": 0.2 * calls,
            "p99_us": 0.3 * calls,
        },
    )
    for function in ("get", "set")
    for calls in (1, 2, 8)
    for subject in ("bare", "direct")
    for number in range(2)
]


def test_a_picture_is_drawn_of_a_run_with_enough_points(tmp_path: Path) -> None:
    assert draw_overview(run_of([one for one in ROWS if one.fields["in_flight"] != 2]), tmp_path) is None
    path = draw_overview(run_of(ROWS), tmp_path)
    assert path == tmp_path / "overview.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_axes_say_what_they_show_also_on_less_than_a_decade() -> None:
    figure = overview(ROWS)
    figure.draw_without_rendering()
    panels = {(axes.get_title(), axes.get_ylabel()): axes for axes in figure.axes}
    titles = ["calls/s", "calls/s", "CPU us a call", "latency us"]
    assert list(panels) == list(zip([f"{name} of 64 B" for name in ("get", "set", "get", "get")], titles, strict=True))
    latency = figure.axes[3]
    assert latency.get_xlabel() == "calls in flight"
    assert [label.get_text() for label in latency.get_xticklabels()] == ["1", "2", "8"]
    assert {label.get_text() for label in latency.get_yticklabels()} >= {"0.2", "0.5", "1", "2"}
    names = [
        f"{name}, {figure}" for name in ("limit (bare responder)", "this provider") for figure in ("p50 us", "p99 us")
    ]
    assert latency.get_legend_handles_labels()[1] == names
