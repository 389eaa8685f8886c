"""The benchmark of deadlines: counts, pacing, and results."""

import itertools
import json
import time

import pytest

from tests.benchmarks.scripts import run

TINY = {"M": 1, "H": 1, "width": 8}


@pytest.fixture
def logged(load):
    """A log of four decisions of 2, 9, 7 and 30 ms."""
    loop = load("control_loop")
    log = loop.Log(loop.Setting("meanflow", 1, 3, 1, 6))
    log.begin()
    for ms, updates, preempted in ((2, 3, 0), (9, 2, 0), (7, 0, 0), (30, 1, 4)):
        log.add(ms * 1e-3, updates, preempted)
    return log


def test_misses_are_counted_against_the_deadline(logged):
    found = logged.summary()
    assert (found["decided"], found["misses"], found["misses_while_preempted"], found["preempted"]) == (4, 2, 1, 1)
    assert found["worst_lateness_ms"] == pytest.approx(22)
    assert found["ms"]["p50"] == pytest.approx(8)
    assert found["ms"]["max"] == pytest.approx(30)
    assert found["updates"] == {"mean": 1.5, "none": 1, "most": 3}
    assert [point["decisions"] for point in found["memory"]] == [0, 4]
    assert found["environment"]["cores"] >= 1


def test_a_paced_loop_starts_at_multiples_of_the_interval(load):
    loop = load("control_loop")
    log = loop.Log(loop.Setting("meanflow", 1, 1, 1, 9, deadline_ms=4.0, paced=True))
    log.begin()
    ticks = [log.next_tick() for _ in range(3)]
    time.sleep(0.009)  # a late answer skips the elapsed intervals
    ticks.append(log.next_tick())
    assert time.perf_counter() >= ticks[-1]
    counts = [(tick - log.started) / 0.004 for tick in ticks]
    assert counts == pytest.approx([round(x) for x in counts], abs=1e-6)
    assert all(b > a for a, b in itertools.pairwise(counts))
    assert counts[3] - counts[2] > 2


def test_loop_on_a_real_hopper(load):
    loop = load("control_loop")
    setting = loop.Setting("meanflow", 1, 2, 1, 30, deadline_ms=1e6, **TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "use_threads", lambda threads: threads)
        patch.setattr(loop, "LOOKS", (10,))
        rows = list(loop.measure(setting, 20))
    assert [row["decided"] for row in rows] == [20, 30]
    assert rows[-1]["misses"] == 0
    assert rows[-1]["updates"] == {"mean": 2.0, "none": 0, "most": 2}
    assert [point["decisions"] for point in rows[-1]["memory"]] == [0, 10, 30]
    assert rows[-1]["warm_up_seconds"] > 0


def test_results_are_written_as_markdown_and_json(load, logged, tmp_path, monkeypatch):
    script = load("deadline")
    settings = []

    def rows(setting, every):
        settings.append(setting)
        for _ in range(2):
            yield {**script.asdict(setting), **logged.summary()}

    monkeypatch.setattr(script, "rows", rows)
    path = tmp_path / "x.json"
    done = script.main(["--models", "meanflow", "--threads", "1", "--decisions", "6", "--json", str(path)])
    assert [setting.updates_asked for setting in settings] == [1, script.MANY]
    written = json.loads(path.read_text())["rows"]
    assert written == json.loads(json.dumps(done))
    assert len(written) == 2
    page = path.with_suffix(".md").read_text()
    assert "| meanflow K 1, E many, 1 thread | 4 | 2 (50.000%) | 1 |" in page


def test_script_in_a_subprocess(tmp_path):
    path = tmp_path / "deadline.json"
    options = ("--models", "meanflow", "--threads", "1", "--updates", "1", "--decisions", "4", "--json", str(path))
    done = run("benchmarks/deadline.py", *options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["decided"] == 4
    assert "machine" in row["environment"]
