"""The benchmark of decisions beside other processes."""

import io
import json

import pytest

TINY = ["--particles", "1", "--horizon", "1", "--steps", "1", "--width", "8", "--turns", "2", "--decisions", "3"]


def test_decisions_are_made_on_demand(load, monkeypatch, capsys):
    script = load("contention")
    monkeypatch.setattr(script.sys, "stdin", io.StringIO("2\n3\n"))
    script.main(["--serve", "1", "1", "1", "1", "8"])
    ready, *answers = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert [len(json.loads(answer)) for answer in answers] == [2, 3]


def test_contestants_take_turns_under_every_load(load, monkeypatch, tmp_path, capsys):
    script = load("contention")
    asked = []

    class Contestant(script.Contestant):
        def __init__(self, folder, threads, options):
            self.folder, self.threads = folder, threads

        def decide(self, count):
            asked.append(self.name)
            return [1.0, 2.0, 9.0][:count]

        def end(self):
            asked.append("end")

    monkeypatch.setattr(script, "Contestant", Contestant)
    path = tmp_path / "x.json"
    found = script.main([*TINY, "--load", "0", "1", "--against", str(tmp_path), "--json", str(path)])
    names = ["1 thread", "2 threads", f"{tmp_path.name}, 1 thread", f"{tmp_path.name}, 2 threads"]
    assert asked == names * 4 + ["end"] * 4
    assert [(row["load"], row["contestant"]) for row in found] == [(load, name) for load in (0, 1) for name in names]
    assert (found[0]["p50"], found[0]["max"]) == (2.0, 9.0)
    assert found[0]["mean"] == pytest.approx(4.0)
    assert json.loads(path.read_text())["rows"] == found
    assert "| 1 | 2 threads | 2.00 | 4.00 |" in capsys.readouterr().out
