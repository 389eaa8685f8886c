"""CORL: the layouts of its TD3+BC checkpoints and its ReBRAC parameters, restated here."""

import numpy as np
import pytest
import torch
from torch import nn

from jacrec import Actor, TwinCritic
from jacrec.adapters import from_corl

D, M = 5, 2
MEAN, STD = np.arange(D) / 2.0, np.linspace(0.1, 3.0, D)


class Net(nn.Module):
    """Linear, ReLU, Linear, ReLU, Linear [, Tanh] under the name net."""

    def __init__(self, inputs, outputs, *last):
        super().__init__()
        hidden = nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
        self.net = nn.Sequential(*hidden, nn.Linear(16, outputs), *last)


@pytest.fixture
def td3_bc():
    torch.manual_seed(0)
    return {"actor": Net(D, M, nn.Tanh()), "critic_1": Net(D + M, 1), "critic_2": Net(D + M, 1)}


def checkpoint(nets):
    states = {name: net.state_dict() for name, net in nets.items()}
    return states | {f"{name}_optimizer": {"state": {}, "param_groups": []} for name in nets} | {"total_it": 7}


@pytest.mark.parametrize("max_action", [1.0, 0.4])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "state dicts"])
def test_td3_bc(td3_bc, max_action, as_file, tmp_path):
    source = checkpoint(td3_bc)
    if as_file:
        torch.save(source, tmp_path / "checkpoint_999.pt")
        source = tmp_path / "checkpoint_999.pt"
    parts = from_corl(source, state_mean=MEAN, state_std=STD, max_action=max_action)
    raw = torch.randn(50, D) * 2
    seen = (raw - torch.tensor(MEAN)).div(torch.tensor(STD)).float()
    unit = torch.rand(50, M) * 2 - 1
    with torch.no_grad():
        theirs = max_action * td3_bc["actor"].net(seen)
        inputs = torch.cat([seen, max_action * unit], 1)
        values = torch.minimum(td3_bc["critic_1"].net(inputs), td3_bc["critic_2"].net(inputs)).squeeze(-1)
        ours = parts.action_box.from_unit(parts.policy(raw).numpy())
        torch.testing.assert_close(parts.critic(raw, unit), values, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-6
    assert (type(parts.policy), type(parts.critic)) == (Actor, TwinCritic)
    assert (parts.state_dim, parts.action_dim, parts.action_box.high) == (D, M, (max_action,))


def flax_dense(rng, fan_in, fan_out, lead=()):
    return {
        "kernel": (rng.standard_normal((*lead, fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32),
        "bias": rng.standard_normal((*lead, fan_out)).astype(np.float32),
    }


def flax_norm(rng, lead=()):
    return {name: rng.standard_normal((*lead, 16)).astype(np.float32) for name in ("scale", "bias")}


def flax_network(rng, fan_in, fan_out, norm, lead=()):
    widths = [(fan_in, 16), (16, 16), (16, 16), (16, fan_out)]
    layers = {f"Dense_{i}": flax_dense(rng, *width, lead) for i, width in enumerate(widths)}
    return layers | ({f"LayerNorm_{i}": flax_norm(rng, lead) for i in range(3)} if norm else {})


def apply_flax(layers, x):
    """Dense → relu → LayerNorm (ε = 1e-6) three times, then Dense, in float64."""
    for i in range(3):
        x = np.maximum(x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"], 0.0)
        if f"LayerNorm_{i}" in layers:
            centred = x - x.mean(-1, keepdims=True)
            x = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"]
    return x @ layers["Dense_3"]["kernel"] + layers["Dense_3"]["bias"]


@pytest.mark.parametrize("actor_norm", [True, False])
def test_rebrac(actor_norm):
    rng = np.random.default_rng(0)
    actor = flax_network(rng, D, M, actor_norm)
    critics = flax_network(rng, D + M, 1, True, lead=(2,))
    parts = from_corl({"actor": {"params": actor}, "critic": {"params": {"VmapCritic_0": critics}}})
    raw, unit = rng.standard_normal((50, D)).astype(np.float32), rng.uniform(-1, 1, (50, M)).astype(np.float32)
    inputs = np.concatenate([raw, unit], 1)
    heads = [{name: {k: v[i] for k, v in layer.items()} for name, layer in critics.items()} for i in range(2)]
    values = np.minimum(*(apply_flax(head, inputs)[:, 0] for head in heads))
    with torch.no_grad():
        ours, value = parts.policy(torch.from_numpy(raw)).numpy(), parts.critic(torch.from_numpy(raw), torch.from_numpy(unit))
    assert np.abs(ours - np.tanh(apply_flax(actor, raw))).max() <= 2e-6
    np.testing.assert_allclose(value.numpy(), values, rtol=1e-5, atol=1e-5)
    assert (type(parts.policy), type(parts.critic)) == (Actor, TwinCritic)


def test_more_than_ten_layers_stay_in_order():
    rng = np.random.default_rng(0)
    actor = {f"Dense_{i}": flax_dense(rng, D if i == 0 else 16, M if i == 11 else 16) for i in range(12)}
    critics = flax_network(rng, D + M, 1, False, lead=(2,))
    parts = from_corl({"actor": actor, "critic": critics})
    for i, layer in enumerate(parts.policy.mlp.layers):
        assert np.array_equal(layer.weight.detach().numpy(), actor[f"Dense_{i}"]["kernel"].T)


def test_what_it_refuses(td3_bc, tmp_path):
    source = checkpoint(td3_bc)
    with pytest.raises(ValueError, match=r"state_mean, state_std: expected those of TD3\+BC's training"):
        from_corl(source)
    with pytest.raises(ValueError, match=r"expected the entries actor, critic_1 and critic_2.*got \['qf1', 'vf'\]"):
        from_corl({"qf1": {}, "vf": {}})
    with pytest.raises(ValueError, match=r"critic_1: expected entries net.0.weight.*got \['net.0.bias'\]"):
        from_corl(source | {"critic_1": {"net.0.bias": torch.zeros(1)}}, state_mean=0, state_std=1)
    with pytest.raises(ValueError, match=rf"expected an actor of d = {D} and critics of d \+ m = {D + M} inputs"):
        from_corl(source | {"critic_1": Net(3, 1).state_dict()}, state_mean=0, state_std=1)
    short = source["actor"] | {"net.2.weight": torch.zeros(16, 15)}
    with pytest.raises(ValueError, match=r"expected weights \(out, in\).*got \[\(16, 5\), \(16, 15\), \(2, 16\)\]"):
        from_corl(source | {"actor": short}, state_mean=0, state_std=1)
    for mean, std in ((MEAN, 0), (MEAN, -STD), (MEAN, STD * np.nan), (MEAN + np.inf, STD)):
        with pytest.raises(ValueError, match=r"^state_mean, state_std: expected finite numbers, and stds > 0, got .*1e-3"):
            from_corl(source, state_mean=mean, state_std=std)
    rng = np.random.default_rng(0)
    rebrac = {"actor": flax_network(rng, D, M, True), "critic": flax_network(rng, D + M, 1, True, lead=(2,))}
    with pytest.raises(ValueError, match=r"max_action: expected 1 for ReBRAC.* got 2"):
        from_corl(rebrac, max_action=2.0)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        from_corl(tmp_path / "none.pt")
    (tmp_path / "half.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"expected tensors that torch.save wrote"):
        from_corl(tmp_path / "half.pt")
    torch.save({"actor": td3_bc["actor"]}, tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"save the modules' state_dict\(\) alone"):
        from_corl(tmp_path / "module.pt")


OTHERS = {
    "spread": (lambda rng, actor: actor | {"log_std": np.zeros(M)}, r"got actor\.log_std"),
    "batch normalisation": (
        lambda rng, actor: {**actor, **{f"BatchNorm_{i}": flax_norm(rng) for i in range(3)}},
        r"got actor\.BatchNorm_0\.\w+",
    ),
    "statistics": (
        lambda rng, actor: {"params": actor, "batch_stats": {"BatchNorm_0": {"mean": np.zeros(16), "var": np.ones(16)}}},
        r"got actor\.batch_stats\.BatchNorm_0\.mean",
    ),
    "no bias": (
        lambda rng, actor: actor | {"Dense_1": {"kernel": np.zeros((16, 16))}},
        r"got actor\.Dense_1\.kernel",
    ),
    "LayerNorm first": (
        lambda rng, actor: {"layers_0": actor["Dense_0"], "layers_1": flax_norm(rng), "layers_3": actor["Dense_3"]},
        r"got a LayerNorm before its ReLU, actor\.layers_1",
    ),
    "a state dict of torch": (lambda rng, actor: Net(D, M).state_dict(), r"got actor\.net\.0\.\w+"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_flax_parameters_of_another_network_are_refused(change, message):
    rng = np.random.default_rng(0)
    critic = flax_network(rng, D + M, 1, True, lead=(2,))
    actor = change(rng, flax_network(rng, D, M, False))
    with pytest.raises(ValueError, match=rf"^actor: expected .*Dense layers.*{message}; wrap"):
        from_corl({"actor": actor, "critic": critic})


def test_a_sequential_of_flax_is_read():
    rng = np.random.default_rng(0)
    named = flax_network(rng, D, M, True)
    counted = {f"layers_{3 * i}": named[f"Dense_{i}"] for i in range(4)} | {
        f"layers_{3 * i + 2}": named[f"LayerNorm_{i}"] for i in range(3)
    }
    critic = flax_network(rng, D + M, 1, True, lead=(2,))
    state = torch.randn(20, D)
    one, other = (from_corl({"actor": actor, "critic": critic}).policy(state) for actor in (named, {"Sequential_0": counted}))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(state_mean=np.zeros(D + 1)), rf"state_mean: expected d = {D} numbers.*got \({D + 1},\)"),
        (dict(state_std="data"), f"state_std: expected d = {D} numbers.*got data"),
        (dict(max_action=np.ones(M)), "max_action: expected a finite number"),
        (dict(discount=2.0), "discount: expected 0 <= γ <= 1, got 2"),
        (
            dict(source=nn.Linear(1, 1)),
            r"actor: expected a state dict of CORL's TD3\+BC, got Net; pass the module's state_dict",
        ),
    ],
)
def test_arguments_that_do_not_fit(td3_bc, changes, message):
    given = dict(source=checkpoint(td3_bc), state_mean=MEAN, state_std=STD) | changes
    if isinstance(given["source"], nn.Module):
        given["source"] = td3_bc
    with pytest.raises(ValueError, match=message):
        from_corl(given.pop("source"), **given)


def test_statistics_with_an_axis_in_front(td3_bc):
    row, plain = (from_corl(checkpoint(td3_bc), state_mean=m, state_std=s) for m, s in ((MEAN[None], STD[None]), (MEAN, STD)))
    assert all(torch.equal(a, b) for a, b in zip(row.policy.parameters(), plain.policy.parameters(), strict=True))
