"""What TrainConfig.deterministic sets, and which bits are equal on a CPU with it and without."""

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
def as_torch_begins():
    """The switches as a fresh torch has them, but for the precision, which a user has lowered; put back at the end."""
    enabled, precision, filling = switches()
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("high")
    yield switches()
    torch.use_deterministic_algorithms(enabled)
    torch.set_float32_matmul_precision(precision)
    torch.utils.deterministic.fill_uninitialized_memory = filling


def test_the_switches_are_on_inside_and_as_before_after(as_torch_begins):
    x, index = torch.zeros(4), torch.tensor([0, 0])
    with determinism(ON), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        x.put_(index, torch.ones(2))  # which of the two stays is a matter of luck
    assert switches() == as_torch_begins
    with determinism(ON):
        assert switches() == (True, "highest", False)
    with determinism(TrainConfig()):
        assert switches() == as_torch_begins


@pytest.mark.parametrize(
    ("setting", "in_use", "accepted"),
    [(None, False, True), (None, True, False), (":16:8", True, True), (":0:0", False, True), (":0:0", True, False)],
)
def test_the_workspaces_of_a_gpu(monkeypatch, setting, in_use, accepted):
    """No GPU is needed: the environment and torch's word on whether CUDA has been used are stood in for."""
    monkeypatch.setenv(WORKSPACE, setting or "")
    if setting is None:
        monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    cuda = replace(ON, device="cuda")
    if not accepted:
        with (
            pytest.raises(ValueError, match=rf"expected {WORKSPACE} to be one of :4096:8, :16:8 before CUDA is first used"),
            determinism(cuda),
        ):
            pass
        return
    with determinism(cuda):
        assert module.os.environ[WORKSPACE] in FIXED_WORKSPACES
    with determinism(TrainConfig(device="cuda")):
        pass


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_threads_give_equal_bits_with_it_and_without(tmp_path, threads):
    config = replace(SMALL, threads=threads)
    folders = [
        train(replace(config, deterministic=flag), tmp_path / name, data=linear_system(), quiet=True)
        for name, flag in (("a", False), ("b", False), ("c", True))
    ]
    for other in folders[1:]:
        assert same_bits(weights(folders[0]), weights(other))
        assert metrics(folders[0]) == metrics(other)


def test_deterministic_training_interrupted_is_undisturbed(tmp_path, as_torch_begins):
    config = replace(SMALL, deterministic=True)

    def enough(line):
        if line["update"] == 40:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path / "a", data=linear_system(), quiet=True, on_log=enough)
    assert switches() == as_torch_begins
    for name in ("a", "b"):
        train(config, tmp_path / name, data=linear_system(), quiet=True)
    assert same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
