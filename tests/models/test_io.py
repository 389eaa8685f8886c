"""Networks on disk."""

import pytest
import torch

from jacrec import (
    Actor,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    RewardModel,
    TwinCritic,
)
from jacrec.models.io import load_module, save_module
from tests.strategies import shake


@pytest.mark.parametrize(
    "module",
    [
        Actor(3, 2, (4, 4), activation="gelu"),
        TwinCritic(3, 2, (4,), critics=3),
        RewardModel(3, 2, (4,)),
        DiffusionDynamics(3, 2, (4,), steps=7, levels=[1, 4, 7], sampler="ddim"),
        DeterministicDynamics(3, 2, (4, 4), residual=True),
        FlowDynamics(3, 2, (4,), steps=3, prediction="x0"),
        MeanFlowDynamics(3, 2, (4,), steps=2, embedding_dim=6, prediction="velocity"),
        EnsembleDynamics(3, 2, (4, 4), members=3, layer_norm=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_saved_is_loaded(module, tmp_path):
    shake(module)
    again = load_module(save_module(module, tmp_path / "new" / "net.safetensors"))
    assert type(again) is type(module)
    assert again.config == module.config
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["net.safetensors"]


def test_precision_survives(tmp_path):
    f = DiffusionDynamics(3, 2, (4,), steps=2).double()
    again = load_module(save_module(f, tmp_path / "net.safetensors"))
    inputs = torch.randn(5, 3).double(), torch.randn(5, 2).double(), torch.randn(5, 3, 3).double()
    assert torch.equal(again(*inputs), f(*inputs))


def test_equal_networks_make_equal_files(tmp_path):
    net = Actor(3, 2, (4,))
    a, b = (save_module(net, tmp_path / name).read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert a == b


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with `jacrec train`"):
        load_module(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="expected one of Actor"):
        save_module(torch.nn.Linear(1, 1), tmp_path / "x.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="expected a network written by jacrec"):
        load_module(tmp_path / "foreign.safetensors")


def test_rebracs_networks_start_as_in_its_reference():
    """Last layers near zero, hidden biases 0.1, hidden weights within 1/√fan_in."""
    torch.manual_seed(0)
    for net, last in ((Actor(11, 3), 1e-3), (TwinCritic(11, 3), 3e-3)):
        *hidden, final = net.mlp.layers
        assert 0.9 * last < final.weight.abs().max() <= last
        assert final.bias.abs().max() <= last
        for layer in hidden:
            assert (layer.bias == 0.1).all()
            bound = layer.weight.shape[-1] ** -0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_a_flow_model_of_an_earlier_version_is_loaded_if_it_takes_euler_steps(tmp_path):
    f = FlowDynamics(3, 2, (4,), steps=3)
    own = f.config
    f.config = own | {"solver": "euler"}
    assert load_module(save_module(f, tmp_path / "euler.safetensors")).config == own
    f.config = own | {"solver": "heun"}
    with pytest.raises(ValueError, match=r"heun\.safetensors: expected solver .euler.*got 'heun'"):
        load_module(save_module(f, tmp_path / "heun.safetensors"))
