"""What the Triton kernels refuse: modules that are not what their attributes say, and arguments that do not fit."""

import pytest
import torch
from torch import nn

from jacrec import Actor, Autograd, BatchedPolicy
from jacrec.engine.methods import policy_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.shapes import problem
from jacrec.kernels import chain as fused
from jacrec.kernels import gradient, kept, rollout
from jacrec.kernels.served import DYNAMICS_SCALES, unsupported_reason
from jacrec.models.activations import ACTIVATIONS
from tests.cpu_cases import anchored
from tests.kernels.test_triton import build, forward, plain, transposed
from tests.oracles import relative_error
from tests.triton_cases import DEVICE, imagine

NETWORK = dict(hidden=(7, 7), layer_norm=True)


def set_activation(mlp):
    mlp.act = ACTIVATIONS["tanh"]


def set_tanh(mlp):
    mlp.tanh_output = not mlp.tanh_output


def widen(mlp):
    layer = mlp.layers[0]
    layer.weight = nn.Parameter(layer.weight.detach().repeat_interleave(2, -1))


def drop_layer(mlp):
    del mlp.layers[1]


def drop_norm(mlp):
    del mlp.norms[1]


def set_eps(mlp):
    mlp.norms[1].eps = 1e-3


def set_dtype(mlp):
    mlp.norms[0].bias = nn.Parameter(mlp.norms[0].bias.detach().float())


def set_device(mlp):
    mlp.layers[1].bias = nn.Parameter(mlp.layers[1].bias.detach().to("meta"))


def set_method(mlp):
    mlp.after_first = lambda z: z


CHANGES = {
    set_activation: r"expected mlp.act to be the 'relu' of mlp.activation, got Activation\(name='tanh'",
    set_tanh: r"expected mlp with \(in_dim, out_dim, tanh_output\) = \(.*, (True|False)\), got \(.*, (False|True)\)",
    widen: r"mlp.layers.0.weight: expected shape \(.*\), got \(.*\)",
    drop_layer: "expected 3 layers, one LayerNorm less or none; got 2 and 2",
    drop_norm: "expected 3 layers, one LayerNorm less or none; got 3 and 1",
    set_eps: r"expected one eps for all LayerNorms, got \[1e-06, 0.001\]",
    set_dtype: "mlp.norms.0.bias: expected torch.float64 on .*, got torch.float32",
    set_device: "mlp.layers.1.bias: expected torch.float64 on .*, got torch.float64 on meta",
    set_method: "expected the methods of MLP, got its own after_first",
}


@pytest.mark.parametrize("part", ["policy", "dynamics", "reward", "critic"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_networks_that_are_not_what_they_say_are_refused(part, change):
    policy, world, state, noise = imagine(1, 2, 1, False, NETWORK, 0)
    p = problem(policy, world, state, noise)
    assert unsupported_reason(p) is None
    module = {"policy": policy, "dynamics": world.dynamics.denoiser, "reward": world.reward, "critic": world.critic}[part]
    change(module.mlp)
    with pytest.raises(ValueError, match=rf"{part}.*{CHANGES[change]}"):
        gradient.forward_gradient(p)
    assert part in rollout.rollout_unsupported_reason(p)
    assert part in gradient.unsupported_reason(p, "adjoint")


def test_an_anchor_is_torchs_beside_the_chains():
    for terminal in (False, True):
        policy, world, state, noise = anchored(imagine(1, 2, 1, False, NETWORK, 0), terminal=terminal)
        p = problem(policy, world, state, noise)
        assert rollout.rollout_unsupported_reason(p) == "world: expected no anchor for a rollout in one launch, got one"
        assert kept.facts(p) is None
    got, expected = gradient.forward_gradient(p), policy_gradient(policy, world, state, noise, method=Autograd())
    assert relative_error(got.gradient, expected.gradient) < 1e-12


@pytest.mark.parametrize("name", ["dynamics.state_mean", "dynamics.out_std", "reward.state_std", "reward.reward_mean"])
@pytest.mark.parametrize("more", [False, True])
def test_scales_of_other_shapes_are_refused(name, more):
    policy, world, state, noise = imagine(1, 2, 1, False, NETWORK, 0)
    part, key = name.split(".")
    module = getattr(world, part)
    scale = getattr(module, key)
    setattr(module, key, scale.new_ones((2, 3) if more else () if scale.dim() else 1))
    # one that does not broadcast fails in the part itself
    with pytest.raises(ValueError, match=rf"{name}: expected shape \((3,)?\), got \((1,|2, 3)?\)|^{part}: expected"):
        gradient.forward_gradient(problem(policy, world, state, noise))


def test_scales_in_any_layout():
    """Expanded, and every second entry of a vector: read with their strides."""
    policy, world, state, noise = imagine(1, 2, 1, False, dict(hidden=(7,)), 0)
    for part, names in ((world.dynamics, DYNAMICS_SCALES), (world.reward, ("state_mean", "state_std"))):
        for i, name in enumerate(names):
            value = getattr(part, name)
            setattr(part, name, value.new_full((1,), 0.5).expand(3) if i % 2 else torch.arange(6.0).to(value)[::2])
    exact = policy_gradient(policy, world, state, noise, method=Autograd())
    p = problem(policy, world, state, noise)
    for got in (rollout.rollout_gradient(p), gradient.adjoint_gradient(p), gradient.adjoint_gradient(p, recompute=True)):
        assert relative_error(got.gradient, exact.gradient) < 1e-12
    f, x, v, _ = build((3, 2, dict(hidden=(7,), steps=2)), 2, 3, 0)
    f.state_std, f.out_std = (torch.full((1,), 0.5, dtype=torch.float64, device=DEVICE).expand(3) for _ in range(2))
    assert relative_error(forward(fused, f, x, v), forward(plain, f, x, v)) < 1e-12


def test_a_problem_that_nobody_checked_is_refused():
    policy, world, state, noise = imagine(2, 2, 1, False, NETWORK, 0)
    for p, words in (
        (Problem(policy, world, state[:1], noise, False), r"noise: expected shape \(1, M, H, 3, 3\), got \(2, 2, 1, 3, 3\)"),
        (Problem(policy, world, state[:, :2], noise, False), r"state: expected shape \(N, 3\), got \(2, 2\)"),
        (Problem(policy, world, state.float(), noise, False), "state: expected torch.float64 on .*, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=words):
            gradient.forward_gradient(p)


def arguments():
    """(dynamics, the chain's arguments by name, cotangent): B = 2, d = m = 3, T = 4, K = 2."""
    f, (s, a, z), (ds, da), lam = build((3, 3, dict(hidden=(7,), steps=2)), 2, 4, 0)
    return f, dict(state=s, action=a, noise=z, ds=ds, da=da, table=plain.level_table(f)), lam


@pytest.mark.parametrize(
    ("name", "cut", "expected"),
    [
        ("state", (..., slice(2)), r"\(B, 3\), got \(2, 2\)"),
        ("state", (0,), r"\(B, 3\), got \(3,\)"),
        ("action", (..., slice(2)), r"\(2, 3\), got \(2, 2\)"),
        ("action", (slice(1),), r"\(2, 3\), got \(1, 3\)"),
        ("noise", (slice(None), slice(2)), r"\(2, 3, 3\), got \(2, 2, 3\)"),
        ("ds", (..., slice(2)), r"\(2, T, 3\), got \(2, 4, 2\)"),
        ("da", (slice(None), slice(3)), r"\(2, 4, 3\), got \(2, 3, 3\)"),
        ("table", (slice(1),), r"\(2, 7\), got \(1, 7\)"),
    ],
)
def test_arguments_of_other_shapes_are_refused(name, cut, expected):
    f, named, _ = arguments()
    named[name] = named[name][cut]
    with pytest.raises(ValueError, match=f"{name}: expected shape {expected}"):
        fused.chain_forward(f, **named)
    if name not in ("ds", "da"):
        with pytest.raises(ValueError, match=f"{name}: expected shape {expected}"):
            fused.chain_record(f, **{k: v for k, v in named.items() if k not in ("ds", "da")})


@pytest.mark.parametrize("name", ["state", "action", "noise", "ds", "da", "table"])
def test_arguments_of_other_kinds_are_refused(name):
    f, named, _ = arguments()
    value = named[name]
    for other, words in (
        (value.float(), "expected torch.float64 on .* like the dynamics, got torch.float32"),
        (value.to("meta"), "expected torch.float64 on .* like the dynamics, got torch.float64 on meta"),
        (value.cpu().numpy(), r"expected a torch.Tensor of shape \(.*\), got ndarray"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {words}"):
            fused.chain_forward(f, **{**named, name: other})


@pytest.mark.parametrize("recompute", [False, True])
def test_cotangents_and_tapes_that_do_not_fit_are_refused(recompute):
    f, named, lam = arguments()
    inputs = named["state"], named["action"], named["noise"]
    _, tape = fused.chain_record(f, *inputs, recompute=recompute)
    with pytest.raises(ValueError, match=r"cotangent: expected shape \(2, 3\), got \(1, 3\)"):
        fused.chain_adjoint(f, tape, lam[:1])
    with pytest.raises(ValueError, match=r"cotangent: expected torch.float64 on .*, got torch.float32"):
        fused.chain_adjoint(f, tape, lam.float())
    longer, _, _, _ = build((3, 3, dict(hidden=(7,), steps=3)), 2, 4, 0)
    with pytest.raises(ValueError, match=r"tape.table: expected shape \(3, 7\), got \(2, 7\)"):
        fused.chain_adjoint(longer, tape, lam)


def test_no_particles():
    f, x, v, lam = build((3, 2, dict(hidden=(7,), steps=2)), 0, 3, 0)
    assert {k: t.shape for k, t in forward(fused, f, x, v).items()} == {"next": (0, 3), "tangents": (0, 3, 3)}
    for recompute in (False, True):
        got = transposed(fused, f, x, lam, recompute)
        assert {k: t.shape for k, t in got.items()} == {"next": (0, 3), "v_s": (0, 3), "v_a": (0, 2)}


class Extended(Actor):
    """A policy with a parameter that its own forward alone knows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, state):
        return self.gain * super().forward(state)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", ["tied", "tied bias", "extended"])
def test_policies_with_tied_or_more_parameters_are_torchs(kind, batched):
    _, world, state, noise = imagine(2, 2, 1, False, dict(hidden=(7,)), 0)
    policy = (Extended if kind == "extended" else Actor)(3, 2, (7, 7, 7)).double()
    if kind == "tied":
        policy.mlp.layers[2].weight = policy.mlp.layers[1].weight
    if kind == "tied bias":
        policy.mlp.layers[2].bias = policy.mlp.layers[1].bias
    args = (BatchedPolicy(policy, 2) if batched else policy).to(DEVICE), world, state, noise
    p = problem(*args)
    assert "policy: expected an unmodified jacrec Actor, no parameter added or tied" in rollout.rollout_unsupported_reason(p)
    exact = policy_gradient(*args, method=Autograd())
    for got in (gradient.forward_gradient(p), gradient.adjoint_gradient(p)):
        assert relative_error(got.gradient, exact.gradient) < 1e-12
