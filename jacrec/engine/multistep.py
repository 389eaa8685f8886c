"""∇_ψ Ĵ through a world model that predicts all steps at once (`MultiStepDynamics`).

With G_j = ds̃_j/dψ, D_j = dã_j/dψ as in Theorem 4.1, (10) is unchanged and (13) depends on all previous actions:

    D_j = Π_s(j) G_j + Π_ψ(j),      G_j = Σ_{i<j} (∂g_j/∂a_i) D_i,      G_0 = 0.

Stacked over j that is a block-triangular system, and the gradient its transpose, solved from the end:

    λ_j = γ^j r_s + Π_s(j)ᵀ w_j  (λ_H = γ^H Q_s + Π_s(H)ᵀ w_H, w_H = γ^H Q_a),
    w_i = γ^i r_a + Σ_{j>i} (∂g_j/∂a_i)ᵀ λ_j,                  ∇L = Σ_i w_i Π_ψ(i).

Row j of the network is pulled back once, to z̄_j at its first layer, and (∂g_j/∂a_i)ᵀ λ_j = W_a[i]ᵀ z̄_j for every i < j: the
sum over j is a running sum of z̄. Forward and back it is H rows of the network per particle, as for a deterministic one-step
model.

With p < H sweeps the trajectory is not the fixed point, and the gradient is that of the p-th iterate itself: the transposed
sweeps over the same rows, in which an action belongs to the state that it was taken at. Rows that an earlier sweep has computed
exactly are neither recomputed nor pulled again, so p = H reduces to the exact solve.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from jacrec.engine.jacobians.mlp import MLPTape, mlp_pull, mlp_record
from jacrec.engine.jacobians.policy import PolicyPass, policy_pass
from jacrec.engine.jacobians.values import value_and_gradient
from jacrec.engine.problem import Problem
from jacrec.engine.types import PolicyGradient
from jacrec.models.dynamics.multistep import MultiStepDynamics, log_scale_and_slope
from jacrec.models.world import apply_policy


@dataclass
class Sweep:
    """Rows first … last of one sweep, with what the transposed sweep needs. Leading axes (N, M)."""

    first: int
    states: Tensor  # (N, M, J, d)
    policy: PolicyPass  # at (N, M·J, d)
    tape: MLPTape
    spread: Tensor | None  # ∂x/∂y of the outputs that scale the noise, (N, M, J, d)

    @property
    def last(self) -> int:
        return self.first + self.states.shape[2] - 1

    def actions(self) -> Tensor:
        """π at its states, (N, M, J, m)."""
        return self.policy.action.unflatten(1, self.states.shape[1:3])


@torch.no_grad()
def multistep_gradient(p: Problem) -> PolicyGradient:
    """Ĵ and ∇_ψ Ĵ in a world of `MultiStepDynamics`, after the number of sweeps that they are set to.

    Raises:
        ValueError: a horizon beyond the model's.
    """
    f = cast(MultiStepDynamics, p.world.dynamics)
    f.check_horizon(p.H)
    start = policy_pass(p.policy, p.state.unsqueeze(1), parameters=False)  # s̃_0, one row for each real state
    sweeps = _sweep(p, f, start)
    value, direct_s, direct_a = _values(p, start, sweeps)
    w_0, weights = _pull(p, f, start, sweeps, direct_s, direct_a)
    at = torch.cat([p.state.unsqueeze(1), *(sweep.states.flatten(1, 2) for sweep in sweeps)], 1)
    w = torch.cat([w_0.sum(1, keepdim=True), *(w.flatten(1, 2) for w in weights)], 1) / p.M
    gradient = policy_pass(p.policy, at).pull_parameters(w if p.batched else w / p.N)
    value = value.squeeze(0) if p.single else value
    return PolicyGradient(value, {name: gradient[name] for name, _ in p.policy.named_parameters()})


def _sweep(p: Problem, f: MultiStepDynamics, start: PolicyPass) -> list[Sweep]:
    """The trajectory, sweep by sweep. The exact one needs row q alone of sweep q; the last row before the last sweep is of no
    use, since nothing acts on it."""
    H, count = p.H, f.passes(p.H)
    state = p.state.unsqueeze(1).expand(-1, p.M, -1)
    actions = start.action.unsqueeze(1).expand(-1, p.M, H, -1).clone()
    noise = f.path_noise(p.noise)
    sweeps: list[Sweep] = []
    for q in range(1, count + 1):
        last = q if count == H else H if q == count else H - 1
        z = f.first_layer(state, actions[:, :, :last], q)
        y, tape = mlp_record(f.mlp, z)
        n = None if noise is None else noise[:, :, q - 1 : last]
        spread = None if n is None else scale_slope(y[..., f.state_dim :]) * n
        states = f.decode(state, y, n, q)
        pi = policy_pass(p.policy, states.flatten(1, 2), parameters=False)
        sweeps.append(Sweep(q, states, pi, tape, spread))
        acting = min(last, H - 1)
        actions[:, :, q : acting + 1] = sweeps[-1].actions()[:, :, : acting + 1 - q]
    return sweeps


def _values(p: Problem, start: PolicyPass, sweeps: list[Sweep]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Ĵ (N,), and γ^j (r_s, r_a) or γ^H (Q_s, Q_a) of every sweep's rows that are in the trajectory (N, M, J, d or m); entry 0
    is that of s̃_0, (N, 1, 1, ·)."""
    H, discount = p.H, p.world.discount
    states, actions, owners = [p.state[:, None, None]], [start.action.unsqueeze(1)], [(0, 0)]
    for k, sweep in enumerate(sweeps):
        end = sweep.last if sweep is sweeps[-1] else sweep.first
        for j in range(sweep.first, end + 1):
            states.append(sweep.states[:, :, j - sweep.first, None])
            actions.append(sweep.actions()[:, :, j - sweep.first, None])
            owners.append((k + 1, j - sweep.first))
    assert len(states) == H + 1
    # all rewards in one batch, s̃_0 once for its M particles, and the critic where the trajectory ends
    value = p.state.new_zeros(p.N)
    direct_s = [torch.zeros_like(x) for x in (states[0], *(sweep.states for sweep in sweeps))]
    direct_a = [torch.zeros_like(x) for x in (actions[0], *(sweep.actions() for sweep in sweeps))]
    for name, js in (("reward", range(H)), ("critic", range(H, H + 1))):
        if not js:
            continue
        s, a = (torch.cat([x[j].flatten(1, 2) for j in js], 1) for x in (states, actions))
        found = value_and_gradient(name, getattr(p.world, name), s.flatten(0, 1), a.flatten(0, 1))
        v, v_s, v_a = (x.unflatten(0, s.shape[:2]).split([states[j].shape[1] for j in js], 1) for x in found)
        for i, j in enumerate(js):
            k, row = owners[j]
            value += discount**j * v[i].mean(1)
            direct_s[k][:, :, row] = discount**j * v_s[i]
            direct_a[k][:, :, row] = discount**j * v_a[i]
    return value, direct_s, direct_a


def _pull(
    p: Problem, f: MultiStepDynamics, start: PolicyPass, sweeps: list[Sweep], direct_s: list[Tensor], direct_a: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """w of s̃_0's action (N, M, m), and of the actions at every sweep's rows (N, M, J, m)."""
    _, W_a, _ = f.split()
    w_0 = direct_a[0][:, :, 0].expand(-1, p.M, -1).clone()
    w = direct_a[1:]
    for k in range(len(sweeps) - 1, -1, -1):
        sweep, q = sweeps[k], sweeps[k].first
        lam = direct_s[k + 1] + sweep.policy.pull_state(w[k].flatten(1, 2)).unflatten(1, sweep.states.shape[1:3])
        x_bar = lam * f.out_std[q - 1 : sweep.last]
        y_bar = x_bar if sweep.spread is None else torch.cat([x_bar, x_bar * sweep.spread], -1)
        z_bar = mlp_pull(f.mlp, sweep.tape, y_bar)  # (N, M, J, w)
        # Σ_{j>i} z̄_j over the sweep's rows q … last: for i < q all of them
        later = z_bar.flip(2).cumsum(2).flip(2)
        through = torch.cat([later[:, :, :1].expand(-1, -1, q - 1, -1), later], 2)  # i = 0 … last−1
        v = torch.einsum("nmiw,iwa->nmia", through, W_a[: sweep.last])
        w_0 += v[:, :, 0]
        for i in range(1, min(q, sweep.last)):  # a_i was taken at a row that its own sweep had right
            w[i - 1][:, :, 0] += v[:, :, i]
        if q > 1:
            before = sweeps[k - 1]
            kept = v[:, :, q:]  # rows that were still wrong: sweep q−1 has i = q−1 first
            w[k - 1][:, :, 1 : 1 + kept.shape[2]] += kept
            assert before.first == q - 1
        else:
            w_0 += v[:, :, 1:].sum(2)  # sweep 0 stands at s̃_0 everywhere
    return w_0, w


def scale_slope(y: Tensor) -> Tensor:
    """dσ/dy."""
    log_scale, slope = log_scale_and_slope(y)
    return torch.exp(log_scale) * slope


@torch.no_grad()
def multistep_growth(p: Problem) -> Tensor:
    """‖ds̃_j/ds̃_0‖₂ with the policy in the loop, j = 0…H: (N, M, H+1); d tangents through the imagination, by torch.func."""
    f = cast(MultiStepDynamics, p.world.dynamics)
    state = p.state.unsqueeze(1).repeat(1, p.M, 1)

    def trajectory(s: Tensor) -> Tensor:
        return f.imagine(lambda x: apply_policy(p.policy, None, x), s, p.noise)

    unit = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
    columns = [torch.func.jvp(trajectory, (state,), (e.repeat(p.N, p.M, 1),))[1] for e in unit]
    return torch.linalg.matrix_norm(torch.stack(columns, -1), 2)
