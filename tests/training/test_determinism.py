"""TrainConfig.deterministic: the switches it sets, and bit-identical training on a CPU with and without it."""

from dataclasses import replace

import pytest
import torch
import torch.utils.deterministic

from jacrec.training import TrainConfig, train
from jacrec.training import determinism as module
from jacrec.training.determinism import FIXED_WORKSPACES, WORKSPACE, determinism
from tests.training.test_run import SMALL, metrics, same_bits, weights
from tests.training_data import linear_system

ON = TrainConfig(deterministic=True)


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture
def default_switches():
    """Torch's default switches, except for the precision, which a user has lowered; restored afterwards."""
    enabled, precision, filling = switches()
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("high")
    yield switches()
    torch.use_deterministic_algorithms(enabled)
    torch.set_float32_matmul_precision(precision)
    torch.utils.deterministic.fill_uninitialized_memory = filling


def test_switches_are_set_inside_the_block_and_restored_after_it(default_switches):
    x, index = torch.zeros(4), torch.tensor([0, 0])
    with determinism(ON), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        x.put_(index, torch.ones(2))  # which of the two values remains is undefined
    assert switches() == default_switches
    with determinism(ON):
        assert switches() == (True, "highest", False)
    with determinism(TrainConfig()):
        assert switches() == default_switches


@pytest.mark.parametrize(
    ("setting", "initialised", "accepted"),
    [(None, False, True), (None, True, False), (":16:8", True, True), (":0:0", False, True), (":0:0", True, False)],
)
def test_cublas_workspaces(monkeypatch, setting, initialised, accepted):
    """Needs no GPU: the environment and torch's record of CUDA's initialisation are replaced."""
    monkeypatch.setenv(WORKSPACE, setting or "")
    if setting is None:
        monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    cuda = replace(ON, device="cuda")
    if not accepted:
        with (
            pytest.raises(ValueError, match=rf"^deterministic: .*{WORKSPACE} .*:4096:8, :16:8 .*got {setting!r};"),
            determinism(cuda),
        ):
            pass
        return
    with determinism(cuda):
        assert module.os.environ[WORKSPACE] in FIXED_WORKSPACES
    with determinism(TrainConfig(device="cuda")):
        pass


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_threads_are_bit_identical_with_and_without_the_setting(tmp_path, threads):
    config = replace(SMALL, threads=threads)
    folders = [
        train(replace(config, deterministic=flag), tmp_path / name, data=linear_system(), quiet=True)
        for name, flag in (("a", False), ("b", False), ("c", True))
    ]
    for other in folders[1:]:
        assert same_bits(weights(folders[0]), weights(other))
        assert metrics(folders[0]) == metrics(other)


def test_interrupted_deterministic_training_resumes_bit_identically(tmp_path, default_switches):
    config = replace(SMALL, deterministic=True)

    def enough(line):
        if line["update"] == 40:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path / "a", data=linear_system(), quiet=True, on_log=enough)
    assert switches() == default_switches
    for name in ("a", "b"):
        train(config, tmp_path / name, data=linear_system(), quiet=True)
    assert same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
