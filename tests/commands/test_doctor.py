"""The doctor: healthy here, and it notices what is broken."""

import subprocess
import sys

import pytest
import torch

import jacrec
from jacrec import cli
from jacrec.commands import doctor
from jacrec.commands.doctor import Check
from jacrec.evaluation import rendering, video
from tests import ROOT


@pytest.fixture
def no_rendering(monkeypatch):
    """Skip the picture: it takes a process and seconds."""
    monkeypatch.setattr(rendering, "probe", lambda: rendering.Rendering(False, "egl", "no libEGL"))


def test_a_working_installation_passes(no_rendering, capsys):
    found = {check.name: check for check in doctor.checks()}
    assert [check.name for check in found.values() if check.status == "broken"] == []
    devices = {"cpu", "gpu", "cpu kernels", "gpu kernels"}
    assert {"python", "packages", "modules", *devices, "gradient", "physics", "rendering", "data"} <= set(found)
    assert found["rendering"].status == "note"
    assert "apt-get install" in found["rendering"].remedy
    assert cli.main(["doctor"]) == 0
    assert "everything essential works" in capsys.readouterr().out


def test_a_wrong_gradient_is_broken(monkeypatch):
    from jacrec.engine import methods

    real = methods.Forward.gradient

    def wrong(self, p):
        estimate = real(self, p)
        next(iter(estimate.gradient.values())).mul_(1.001)
        return estimate

    monkeypatch.setattr(methods.Forward, "gradient", wrong)
    (check,) = doctor.check_gradient()
    assert check.status == "broken"
    assert check.remedy


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package"))
    broken = doctor.check_packages()[-1]
    assert (broken.status, broken.remedy) == ("broken", "pip install no-such-package")


def test_every_module_is_imported():
    names = set(doctor.module_names(jacrec))
    assert {"jacrec.cli", "jacrec.commands.doctor", "jacrec.studies.cluster"} <= names
    assert {"jacrec.kernels", "jacrec.kernels.gradient", "jacrec.kernels.cpu.gradient.gradient"} <= names
    sources = [path for folder in ("jacrec", "kernels") for path in (ROOT / folder).rglob("*.py")]
    assert len(names) == len(sources) - len([x for x in sources if x.name == "__main__.py"]) - 2  # jacrec, and kernels twice


def test_a_module_that_cannot_be_imported_is_broken(monkeypatch):
    real = doctor.import_module

    def fail(name):
        if name == "jacrec.studies.sweep":
            raise ModuleNotFoundError("No module named 'jacrec.studies.planners'", name="jacrec.studies.planners")
        return real(name)

    monkeypatch.setattr(doctor, "import_module", fail)
    (check,) = doctor.check_modules()
    assert check.status == "broken"
    assert "1 of" in check.found
    assert "jacrec.studies.sweep (ModuleNotFoundError: No module named 'jacrec.studies.planners')" in check.found


def test_a_missing_optional_package_is_a_note(monkeypatch):
    real = doctor.import_module

    def fail(name):
        if name in ("jacrec.kernels.pull", "jacrec.kernels.reverse"):
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return real(name)

    monkeypatch.setattr(doctor, "import_module", fail)
    (check,) = doctor.check_modules()
    assert check.status == "note"
    assert check.found.startswith("2 of")
    assert "triton" in check.remedy


def test_a_check_that_crashes_is_reported_and_the_exit_code_says_so(monkeypatch, capsys):
    def check_world():
        raise RuntimeError("no world")

    monkeypatch.setattr(doctor, "check_gradient", check_world)
    monkeypatch.setattr(doctor, "check_rendering", lambda: [Check("rendering", "ok", "")])
    assert cli.main(["doctor"]) == 1
    assert "broken: world" in capsys.readouterr().out


def test_data_folder_has_to_be_writable(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    assert doctor.check_data()[0].remedy.startswith("make one")
    monkeypatch.setattr(doctor.os, "access", lambda *args: False)
    assert doctor.check_data()[0].status == "broken"


def test_rendering_that_kills_its_process_is_survived():
    reason = rendering.run_renderer([sys.executable, "-c", "import os; os.abort()"], 30)
    assert reason == "the process was killed by signal 6"
    reason = rendering.run_renderer([sys.executable, "-c", "raise OSError('no display')"], 30)
    assert reason == "OSError: no display"
    assert rendering.run_renderer([sys.executable, "-c", "import time; time.sleep(9)"], 0.2) == "no image within 0 s"


def test_a_video_that_cannot_be_made_says_why(monkeypatch, tmp_path):
    from jacrec.evaluation.config import EvalConfig
    from jacrec.training.run import Run

    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "ImportError: no EGL\n"))
    run = Run.__new__(Run)
    object.__setattr__(run, "path", tmp_path)
    film = video.record_video(run, EvalConfig(), tmp_path)
    assert film.path is None
    assert film.reason.startswith("ImportError: no EGL; on Debian")


def test_kernels_of_a_gpu_are_tried(monkeypatch):
    from jacrec.kernels.failures import KernelBuildError

    real = doctor.gradient_error

    outcomes = {}

    def on_gpu(*methods, device="cpu", single=False):
        if device == "cpu":
            return real(*methods)
        outcome = outcomes[single]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(doctor, "gradient_error", on_gpu)
    unbuildable = KernelBuildError("rollout_kernel: Failed to find\nC compiler")
    old = ValueError("device: expected a compute capability of at least 8.0, got 7.5")
    for exact, rounded, status, words in (
        (1e-13, 1e-6, "ok", "agrees with autograd to 1e-13, in float32 to 1e-06"),
        (1e-3, 1e-6, "broken", "agrees with autograd to 1e-03"),
        (1e-13, 0.1, "broken", "in float32 to 1e-01"),
        (unbuildable, 1e-6, "note", "plain torch: KernelBuildError: rollout_kernel"),
        (1e-13, unbuildable, "note", "plain torch: KernelBuildError: rollout_kernel"),
        (old, old, "note", "got 7.5"),
    ):
        outcomes |= {False: exact, True: rounded}
        check = doctor.check_triton("triton 3.9.0, ")
        assert check.status == status
        assert words in check.found
    # an error of a running GPU is no reason for plain torch
    outcomes[False] = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        doctor.check_triton("triton 3.9.0, ")


def test_a_single_particle_is_tried_too():
    from jacrec.engine.methods import Adjoint, Forward

    policy, _, _, noise = doctor.small_problem(single=True)
    assert noise.shape[:2] == (1, 2)
    assert next(policy.parameters()).dtype == noise.dtype == torch.float32
    assert doctor.gradient_error(Forward(), Adjoint(), single=True) < 1e-4
