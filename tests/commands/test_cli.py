"""The command line end to end on tiny budgets, and how it fails."""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import jacrec
from jacrec import cli
from jacrec.commands import train as train_verb
from tests import ROOT

TINY = [
    "--rebrac.hidden",
    "16",
    "16",
    "--rebrac.updates",
    "4",
    "--rebrac.batch-size",
    "32",
    "--dynamics.hidden",
    "16",
    "16",
    "--dynamics.steps",
    "2",
    "--dynamics.updates",
    "4",
    "--dynamics.eval-transitions",
    "20",
    "--reward.hidden",
    "16",
    "--reward.updates",
    "4",
    "--reward.eval-transitions",
    "20",
    "--log-every",
    "2",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_data_to_report(folder, capsys):
    assert cli.main(["data", "list"]) == 0
    assert "no data sets" in capsys.readouterr().out
    assert cli.main(["data", "make", "hopper", "random", "--steps", "300"]) == 0
    assert "jacrec/hopper-random-v0" in capsys.readouterr().out
    assert cli.main(["data", "list"]) == 0
    assert "Hopper-v4" in capsys.readouterr().out
    assert cli.main(["data", "show", "jacrec/hopper-random-v0"]) == 0
    assert "300" in capsys.readouterr().out

    train = ["train", "jacrec/hopper-random-v0", *TINY]
    assert cli.main(train) == 0
    run = "runs/hopper-random-v0-s0"
    assert f"next: jacrec eval {run}" in capsys.readouterr().out
    assert cli.main([*train, "--out", "part", "--stages", "dynamics"]) == 0
    assert "next: the same with --stages rebrac reward\n" in capsys.readouterr().out
    metrics = (folder / run / "metrics.jsonl").read_bytes()
    assert cli.main(train) == 0  # a finished run is left as it is
    assert (folder / run / "metrics.jsonl").read_bytes() == metrics
    assert cli.main([*train[:-1], "3", "--out", run]) == 2  # another run is not overwritten
    assert "log_every" in capsys.readouterr().err

    assert cli.main(["eval", run, "--episodes", "2", "--mpc.horizon", "1", "--mpc.particles", "2", "--no-video"]) == 0
    out = capsys.readouterr().out
    assert "MPC" in out
    assert f"next: jacrec report {run}" in out
    assert cli.main(train) == 0
    assert cli.main(["eval", run, "--episodes", "2", "--mpc.horizon", "1", "--mpc.particles", "2", "--no-video"]) == 0
    assert cli.main(["eval", run, "--episodes", "3", "--no-video"]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["report", run]) == 0
    assert capsys.readouterr().out.strip() == f"report: {run}/report.md"
    assert "H = 0" in (folder / run / "report.md").read_text()


@pytest.mark.parametrize("option", ["--dynamics.members=7", "--dynamics.flow-ratio", "--dynamics.stochastic"])
def test_settings_of_another_kind_of_world_model_are_refused(folder, capsys, option):
    args = [option, "0.5"] if option.endswith("ratio") else [option]
    kind = "ensemble" if "members" in option else "meanflow" if "flow" in option else "multistep"
    assert cli.main(["train", "nowhere.hdf5", *TINY, *args]) == 2
    assert "expected a setting of kind 'diffusion'" in capsys.readouterr().err
    assert cli.main(["train", "nowhere.hdf5", "--dynamics.kind", kind, *args]) == 2
    assert "expected a setting" not in capsys.readouterr().err


def test_settings_of_planners_that_do_not_play_are_refused(folder, capsys):
    asked = ["eval", "nowhere", "--contestants", "mppi", "best-of-q"]
    assert cli.main([*asked, "--planner.elites", "2"]) == 2
    assert "--planner.elites: expected a setting of the planners that play (mppi, best-of-q)" in capsys.readouterr().err
    assert cli.main([*asked, "--planner.temperature", "0.5"]) == 2
    assert "expected a setting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tarin"], "expected one of data, models, train"),
        (["data", "make", "hoper", "random"], "hopper"),
        (["data", "show", "jacrec/none-v0"], "jacrec data make"),
        (["train", "jacrec/none-v0"], "jacrec data make"),
        (["train", "jacrec/none-v0", "--settings", "none.yaml"], "no file at none.yaml"),
        (["eval", "nowhere"], "jacrec train"),
        (["report", "nowhere"], "jacrec train"),
        (["eval", "nowhere", "--episodes", "0"], "at least 1"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(folder, capsys, args, message):
    try:
        code = cli.main(args)
    except SystemExit as stop:  # the argument parser's own way out
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, folder):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_verb, "train", interrupted)
    assert cli.main(["train", "a file.hdf5", "--seed", "3"]) == 130
    assert "to resume: jacrec train 'a file.hdf5' --seed 3" in capsys.readouterr().err


def test_settings_come_from_the_data_set_then_the_file_then_the_options(monkeypatch, folder):
    seen = []
    monkeypatch.setattr(train_verb, "train", lambda config, out, stages, **options: seen.append((config, str(out), stages)))
    (folder / "mine.yaml").write_text("seed: 5\nrebrac: {tau: 0.02, updates: 7}\n")
    source = "some/hopper_medium_replay-v2.hdf5"
    assert cli.main(["train", source, "--settings", "mine.yaml", "--rebrac.updates", "9", "--stages", "rebrac"]) == 0
    ((config, out, stages),) = seen
    assert (config.data, config.seed, out, stages) == (source, 5, "runs/hopper-medium-replay-v2-s5", ("rebrac",))
    assert (config.rebrac.critic_bc_coef, config.rebrac.tau, config.rebrac.updates) == (0.5, 0.02, 9)
    (folder / "bad.yaml").write_text("sead: 5\n")
    assert cli.main(["train", "x.hdf5", "--settings", "bad.yaml"]) == 2


@pytest.mark.parametrize("before", [[], ["--seed", "1"]])
def test_published_settings_are_found_wherever_the_data_stands(monkeypatch, folder, capsys, before):
    """An option before DATA once lost them without a word."""
    seen = []
    monkeypatch.setattr("jacrec.commands.train.train", lambda config, out, **options: seen.append(config))
    assert cli.main(["train", *before, "some/hopper_medium_expert-v2.hdf5", "--out", "x"]) == 0
    assert seen[0].rebrac.actor_bc_coef == 0.1
    assert "published settings for hopper-medium-expert-v2" in capsys.readouterr().out


def test_a_setting_that_cannot_be_built_leaves_no_folder(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["data", "make", "hopper", "random", "--steps", "300"]) == 0
    for wrong in (["--dynamics.schedule", "foo"], ["--device", "cuda"], ["--device", "auto"]):
        assert cli.main(["train", "jacrec/hopper-random-v0", "--out", "new", *wrong]) == 2
        assert not Path("new").exists()
    Path("file").write_text("")
    assert cli.main(["train", "jacrec/hopper-random-v0", "--out", "file/x", "--rebrac.updates", "2"]) == 2
    assert "file" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("module", ["jacrec.cli", "jacrec.util.files", "jacrec.commands.doctor"])
def test_an_interrupt_during_imports_ends_quietly(module):
    """As far as Python lets: nothing of jacrec runs before `jacrec` itself is imported."""
    interrupted = (
        "import importlib.abc, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupted(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['jacrec', 'doctor']\n"
        "runpy.run_module('jacrec', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupted], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stdout == ""
    assert len(done.stderr.split()) < 10
    assert done.stderr.strip().startswith("interrupted")


def test_importing_jacrec_imports_hardly_anything():
    loaded = "import sys; before = set(sys.modules); import jacrec; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        "importlib",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "jacrec",
        "warnings",
    }


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_fast(option):
    """In processor time, of which a busy machine does not take more."""
    code = (
        f"import sys, time\nfrom jacrec import cli\ncli.main(['{option}'])\nprint('torch' in sys.modules, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch_imported, seconds = done.stdout.splitlines()[-1].split()
    assert torch_imported == "False"
    assert float(seconds) < 0.5


def test_the_version_stands_in_one_place(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jacrec {jacrec.__version__}\n"
    assert f"version: {jacrec.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changes = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert jacrec.__version__ in changes[:2]


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "jacrec"], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)


def test_bench_runs_what_a_checkout_has(folder, capfd):
    assert cli.main(["bench"]) == 2
    assert "root of a checkout" in capfd.readouterr().err
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "harness.py").write_text("raise SystemExit(3)\n")
    (folder / "benchmarks" / "good_speed.py").write_text('if __name__ == "__main__":\n    print("fast")\n')
    assert cli.main(["bench"]) == 0
    assert "fast" in capfd.readouterr().out
    (folder / "benchmarks" / "bad_speed.py").write_text('if __name__ == "__main__":\n    raise SystemExit(3)\n')
    assert cli.main(["bench"]) == 1
    assert "failed: bad_speed" in capfd.readouterr().err
    assert cli.main(["bench", "harness"]) == 2


def test_every_verb_explains_itself(capsys):
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0
        assert verb in capsys.readouterr().out


@pytest.mark.parametrize("verb", [*cli.VERBS, "data make", "data get", "data list", "data show"])
def test_no_option_states_two_defaults(capsys, verb):
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    text = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
    for option in re.split(r"\n(?= *(?:--[a-z]|\[?[A-Z]{2}))", text):
        assert len(re.findall(r"(?i)\bdefault(?:, [^:]*)?:", option)) <= 1, option


def test_what_is_refused_before_work_begins_shows_no_progress(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("JACREC_DATA", str(tmp_path))
    for args in (
        ["make", "hopper", "no-such", "--steps", "9"],
        ["make", "hopper", "random", "--seed", "-1"],
        ["get", "no-such-v0"],
    ):
        with suppress(SystemExit):
            assert cli.main(["data", *args]) != 0
        assert capfd.readouterr().out.strip() == ""
