"""Theorem 4.1, equation by equation: (1) to (4), section 4.4, and (5) to (32) of its proof, in the paper's order.

Every line compares two computations in float64: jacrec's objects (`by_jacrec.py`), and a plain transcription of the
rollout differentiated by torch.func (`by_autodiff.py`). Run `python paper_checks/theorem_4_1.py`; it exits with 1 if an
equation does not hold.
"""

import copy
import sys

import torch
from by_autodiff import ByAutodiff
from by_jacrec import ByJacrec
from ledger import Ledger
from torch import Tensor
from torch.func import grad

from jacrec import (
    Actor,
    Adjoint,
    Autograd,
    DiffusionDynamics,
    Forward,
    RewardModel,
    TwinCritic,
    World,
    imagined_return,
    mpc_update,
    policy_gradient,
    rollout,
)
from jacrec.engine.jacobians.chain import chain_record
from jacrec.engine.jacobians.dynamics import jacobians
from jacrec.engine.jacobians.values import value_and_gradient
from jacrec.engine.sensitivities import dense_action_step

METHODS = (Forward(sensitivities="dense"), Forward(), Adjoint(), Adjoint(recompute=True), Autograd())
STATE_DIM, ACTION_DIM, HIDDEN, STEPS, HORIZON, PARTICLES = 5, 2, (32, 32), 6, 4, 3
ROLLOUT, POLICY, DYNAMICS = (
    "jacrec/engine/rollout.py",
    "jacrec/engine/jacobians/policy.py",
    "jacrec/engine/jacobians/dynamics.py",
)
CHAIN, VALUES, SENSITIVITIES = (
    "jacrec/engine/jacobians/chain.py",
    "jacrec/engine/jacobians/values.py",
    "jacrec/engine/sensitivities.py",
)
GRADIENT, DIFFUSION = "jacrec/engine/gradient.py", "jacrec/models/dynamics/diffusion.py"


def section_3_and_4(ledger: Ledger, ours: ByJacrec, theirs: ByAutodiff) -> None:
    """The reverse step (1), the objective (2) to (4), the definitions of section 4.4 and the theorem."""
    lin, noise, gamma, H, K = ours.lin, theirs.noise, theirs.gamma, theirs.H, theirs.K
    s, a, packs = theirs.states[:, 1], theirs.actions[:, 1], noise[:, 1]

    ledger.check(
        "(1)",
        "s^(k-1) = h_k(s^(k), s, a, z_{k-1})",
        DIFFUSION,
        *(
            (ours.dynamics.h(k, packs[:, k], s, a, packs[:, k - 1]), theirs.h(k, packs[:, k], s, a, packs[:, k - 1]))
            for k in range(K, 0, -1)
        ),
    )

    imagined = rollout(ours.policy, ours.world, ours.state.unsqueeze(0), noise.unsqueeze(0))
    ledger.check(
        "(2)",
        "s̃_0 = s_t, ã_j = π(s̃_j), s̃_{j+1} = f(s̃_j, ã_j, ε_{t+j})",
        ROLLOUT,
        (imagined.states[0], theirs.states),
        (imagined.actions[0], theirs.actions),
    )

    L = theirs.over_noise(theirs.L)
    ledger.check("(3)", "L = Σ_{j<H} γ^j r(s̃_j, ã_j) + γ^H Q(s̃_H, π(s̃_H))", ROLLOUT, (imagined.returns[0], L))

    ledger.check(
        "§4.2 Ĵ",
        "Ĵ = 1/M Σ_m L(ψ; ε^(m))",
        f"{GRADIENT}, {ROLLOUT}",
        (imagined_return(ours.policy, ours.world, ours.state, noise), L.mean()),
        *((policy_gradient(ours.policy, ours.world, ours.state, noise, method=method).value, L.mean()) for method in METHODS),
    )

    ledger.check(
        "(4)", "ψ ← ψ + α ∇Ĵ, e = 1 … E; a_t = π(s_t)", "jacrec/control/ascent.py, jacrec/control/mpc.py", *ascent(ours, theirs)
    )

    ledger.check(
        "§4.4 Π", "Π_s(j), Π_ψ(j): the policy's Jacobians", POLICY, (lin.Pi_s, theirs.Pi_s), (ours.Pi_psi, theirs.Pi_psi)
    )
    ledger.check(
        "§4.4 F", "F_s(j), F_a(j): the world model's Jacobians", DYNAMICS, (lin.F_s, theirs.F_s), (lin.F_a, theirs.F_a)
    )
    ledger.check(
        "§4.4 G, D",
        "G_0 = 0, D_j = Π_s G_j + Π_ψ, G_{j+1} = F_s G_j + F_a D_j",
        SENSITIVITIES,
        (ours.G, theirs.G),
        (ours.D, theirs.D),
        (ours.dense_G, theirs.G),
        (ours.dense_D, theirs.D),
    )
    ledger.check(
        "§4.4 r, Q",
        "r_s(j), r_a(j), Q_s, Q_a: gradients of reward and critic",
        VALUES,
        (lin.r_s, theirs.r_s),
        (lin.r_a, theirs.r_a),
        (lin.Q_s, theirs.Q_s),
        (lin.Q_a, theirs.Q_a),
    )

    sum_over_j = sum(gamma**j * (row(lin.r_s[:, j], ours.G[:, j]) + row(lin.r_a[:, j], ours.D[:, j])) for j in range(H))
    ledger.check(
        "Theorem 4.1 ∇L",
        "∇L = Σ γ^j (r_s G_j + r_a D_j) + γ^H (Q_s G_H + Q_a D_H)",
        GRADIENT,
        (sum_over_j + gamma**H * (row(lin.Q_s, ours.G[:, H]) + row(lin.Q_a, ours.D[:, H])), theirs.gradient(theirs.L)),
    )

    _, A_0, B_0 = ours.chain(0, s, a, packs)
    ledger.check(
        "Theorem 4.1 A, B",
        "∇_a s^(0) = A_0, ∇_s s^(0) = B_0",
        CHAIN,
        (A_0, theirs.chain_gradient(0, 1, s, a, packs)),
        (B_0, theirs.chain_gradient(0, 0, s, a, packs)),
    )


def appendix_b1(ledger: Ledger, ours: ByJacrec, theirs: ByAutodiff) -> None:
    """Sensitivity recursions, (5) to (13)."""
    lin, H, G, D = ours.lin, theirs.H, theirs.G, theirs.D

    ledger.check(
        "(5)",
        "the rollout again, as `linearize` walks it",
        "jacrec/engine/linearize.py",
        (lin.states, theirs.states),
        (lin.actions, theirs.actions),
    )
    ledger.check("(6)", "G_h = ∇_ψ s̃_h, D_h = ∇_ψ ã_h, from the factored C and E", SENSITIVITIES, (ours.G, G), (ours.D, D))
    ledger.check("(7)", "G_0 = 0", SENSITIVITIES, (ours.G[:, 0], torch.zeros_like(G[:, 0])), (ours.G[:, 0], G[:, 0]))
    ledger.check("(8)", "D_h = ∇_ψ π(s̃_h) + ∇_s π(s̃_h) ∇_ψ s̃_h", SENSITIVITIES, (ours.D, theirs.Pi_psi + theirs.Pi_s @ G))
    ledger.check(
        "(9)", "Π_s(h) = ∇_s π(s̃_h), Π_ψ(h) = ∇_ψ π(s̃_h)", POLICY, (lin.Pi_s, theirs.Pi_s), (ours.Pi_psi, theirs.Pi_psi)
    )
    ledger.check("(10)", "D_h = Π_s(h) G_h + Π_ψ(h)", SENSITIVITIES, (dense_action_step(ours.G, lin.Pi_s, ours.Pi_psi), D))
    ledger.check(
        "(11)",
        "G_{h+1} = ∇_s f G_h + ∇_a f D_h, columns pushed through the chain",
        CHAIN,
        *((ours.pushed(h), G[:, h + 1]) for h in range(H)),
    )
    ledger.check(
        "(12)",
        "F_s(h) = ∇_s f(s̃_h, ã_h, ε), F_a(h) = ∇_a f(s̃_h, ã_h, ε)",
        DYNAMICS,
        (lin.F_s, theirs.F_s),
        (lin.F_a, theirs.F_a),
    )
    ledger.check("(13)", "G_{h+1} = F_s(h) G_h + F_a(h) D_h", SENSITIVITIES, (ours.dense_G, G))


def appendix_b2(ledger: Ledger, ours: ByJacrec, theirs: ByAutodiff) -> None:
    """Gradient of the per-noise return, (14) to (22)."""
    lin, gamma, H, G, D = ours.lin, theirs.gamma, theirs.H, ours.G, ours.D
    states, actions = theirs.states, theirs.actions
    last = states[:, H], actions[:, H]

    ledger.check(
        "(14)",
        "L = Σ_{h<H} γ^h r(s̃_h, ã_h) + γ^H Q(s̃_H, π(s̃_H))",
        "jacrec/engine/linearize.py",
        (lin.returns, theirs.over_noise(theirs.L)),
    )
    grad_r = theirs.gradient(theirs.rewards)  # (M, H, P)
    at_h = [value_and_gradient("reward", ours.world.reward, states[:, h], actions[:, h]) for h in range(H)]
    ledger.check(
        "(15)",
        "∇_ψ r_h = ∇_s r G_h + ∇_a r D_h",
        f"{VALUES}, {SENSITIVITIES}",
        *((row(r_s, G[:, h]) + row(r_a, D[:, h]), grad_r[:, h]) for h, (_, r_s, r_a) in enumerate(at_h)),
    )
    ledger.check(
        "(16)", "r_s(h) = ∇_s r(s̃_h, ã_h), r_a(h) = ∇_a r(s̃_h, ã_h)", VALUES, (lin.r_s, theirs.r_s), (lin.r_a, theirs.r_a)
    )
    ledger.check(
        "(17)",
        "∇_ψ r(s̃_h, ã_h) = r_s(h) G_h + r_a(h) D_h",
        GRADIENT,
        (row(lin.r_s, ours.dense_G[:, :H]) + row(lin.r_a, ours.dense_D[:, :H]), grad_r),
    )
    grad_V = theirs.gradient(theirs.terminal)  # (M, P)
    _, Q_s, Q_a = value_and_gradient("critic", ours.world.critic, *last)
    ledger.check(
        "(18)", "∇_ψ V_T = ∇_s Q G_H + ∇_a Q D_H", f"{VALUES}, {SENSITIVITIES}", (row(Q_s, G[:, H]) + row(Q_a, D[:, H]), grad_V)
    )
    ledger.check("(19)", "Q_s = ∇_s Q(s̃_H, ã_H), Q_a = ∇_a Q(s̃_H, ã_H)", VALUES, (lin.Q_s, theirs.Q_s), (lin.Q_a, theirs.Q_a))
    ledger.check(
        "(20)",
        "∇_ψ Q(s̃_H, ã_H) = Q_s G_H + Q_a D_H",
        GRADIENT,
        (row(lin.Q_s, ours.dense_G[:, H]) + row(lin.Q_a, ours.dense_D[:, H]), grad_V),
    )
    ledger.check(
        "(21)",
        "D_H = Π_s(H) G_H + Π_ψ(H)",
        SENSITIVITIES,
        (dense_action_step(G[:, H], lin.Pi_s[:, H], ours.Pi_psi[:, H]), theirs.D[:, H]),
    )
    discounts = gamma ** torch.arange(H, dtype=grad_r.dtype)
    from_stages = torch.einsum("h,mhp->mp", discounts, grad_r) + gamma**H * grad_V
    ledger.check(
        "(22)",
        "∇_ψ L: dense, Forward, Adjoint (kept, recomputed), Autograd",
        GRADIENT,
        *((ours.gradient(method), expected) for method in METHODS for expected in (from_stages, theirs.gradient(theirs.L))),
        *((ours.mean_gradient(method), theirs.gradient(theirs.L).mean(0)) for method in METHODS),
    )


def appendix_b3(ledger: Ledger, ours: ByJacrec, theirs: ByAutodiff) -> None:
    """The Jacobians of the reverse chain, (23) to (32), at the particles' second imagined state."""
    K, f = theirs.K, ours.dynamics
    s, a, packs = theirs.states[:, 1], theirs.actions[:, 1], theirs.noise[:, 1]
    latents = theirs.chain_rows(s, a, packs)  # s^(0) … s^(K)
    ours_at = [ours.chain(k, s, a, packs) for k in range(K + 1)]  # s^(k), A_k, B_k
    A = [theirs.chain_gradient(k, 1, s, a, packs) for k in range(K + 1)]
    B = [theirs.chain_gradient(k, 0, s, a, packs) for k in range(K + 1)]
    partials = {k: theirs.partials(k, latents[k], s, a, packs[:, k - 1]) for k in range(1, K + 1)}
    downwards = range(K, 0, -1)

    ledger.check("(23)", "s^(K) = g_K(z_K) = z_K", DIFFUSION, (f.g(packs[:, K]), packs[:, K]), (ours_at[K][0], latents[K]))
    ledger.check(
        "(24)",
        "s^(k-1) = h_k(s^(k), s, a, z_{k-1}), k = K … 1",
        CHAIN,
        *((ours_at[k - 1][0], latents[k - 1]) for k in downwards),
    )
    ledger.check(
        "(25)",
        "f(s, a, ε) = s^(0), in the data's units",
        DIFFUSION,
        (f(s, a, packs), f.decode(s, latents[0])),
        (f(s, a, packs), torch.stack([*map(theirs.f, s, a, packs)])),
    )
    ledger.check(
        "(26)",
        "A_k = ∇_a s^(k), B_k = ∇_s s^(k)",
        CHAIN,
        *((ours_at[k][1], A[k]) for k in range(K + 1)),
        *((ours_at[k][2], B[k]) for k in range(K + 1)),
    )
    ledger.check(
        "(27)", "A_K = 0, B_K = 0", CHAIN, (ours_at[K][1], torch.zeros_like(A[K])), (ours_at[K][2], torch.zeros_like(B[K]))
    )
    ledger.check(
        "(28)",
        "s^(k-1) = h_k(u, s, a, z_{k-1}) at u = s^(k)",
        DIFFUSION,
        *((f.h(k, latents[k], s, a, packs[:, k - 1]), ours_at[k - 1][0]) for k in downwards),
    )
    ledger.check(
        "(29)",
        "A_{k-1} = ∂h_k/∂u A_k + ∂h_k/∂a",
        CHAIN,
        *((ours_at[k - 1][1], h_u @ ours_at[k][1] + h_a) for k, (h_u, _, h_a) in partials.items()),
    )
    _, tape = chain_record(f, s, a, packs, recompute=True)
    ledger.check(
        "(30)", "the partial derivatives are taken at u = s^(k)", CHAIN, *((tape.latents[k - 1], latents[k]) for k in downwards)
    )
    ledger.check(
        "(31)",
        "B_{k-1} = ∂h_k/∂u B_k + ∂h_k/∂s",
        CHAIN,
        *((ours_at[k - 1][2], h_u @ ours_at[k][2] + h_s) for k, (h_u, h_s, _) in partials.items()),
    )
    _, J = jacobians(ours.passes, s, a, packs)
    by_a, by_s = f.out_std.unsqueeze(-1) * A[0], f.out_std.unsqueeze(-1) * B[0]
    unit = torch.eye(STATE_DIM, dtype=s.dtype) if f.target == "difference" else torch.zeros(())
    ledger.check(
        "(32)",
        "∇_a f = A_0, ∇_s f = B_0, in the data's units",
        DYNAMICS,
        (J.F_a, by_a),
        (J.F_s, by_s + unit),
        (J.F_a, theirs.F_a[:, 1]),
        (J.F_s, theirs.F_s[:, 1]),
    )


def row(v: Tensor, J: Tensor) -> Tensor:
    """The row vector v times the matrix J: (..., n), (..., n, P) -> (..., P)."""
    return (v.unsqueeze(-2) @ J).squeeze(-2)


def ascent(ours: ByJacrec, theirs: ByAutodiff, lr: float = 0.05, updates: int = 3) -> list[tuple[Tensor, Tensor]]:
    """ψ, Ĵ and the action after E updates at fixed noise: by `mpc_update`, and by its definition."""
    policy = copy.deepcopy(ours.policy)
    step = mpc_update(policy, ours.world, ours.state, noise=ours.noise, updates=updates, lr=lr, method=Forward())
    psi, objective = theirs.psi, []
    for _ in range(updates):
        objective.append(theirs.J(psi))
        psi = psi + lr * grad(theirs.J)(psi)
    moved = torch.cat([p.detach().reshape(-1) for p in policy.parameters()]) - theirs.psi
    return [(moved, psi - theirs.psi), (step.objective, torch.stack(objective)), (step.action, theirs.pi(psi, ours.state))]


def worlds() -> dict[str, World]:
    """Two worlds: (1) as printed, where s^(0) is the next state itself; and the default, in standardised differences."""
    scales = torch.rand(4, STATE_DIM) + 0.5
    printed = DiffusionDynamics(
        STATE_DIM, ACTION_DIM, HIDDEN, steps=STEPS, sampler="printed", target="state", activation="tanh"
    )
    default = DiffusionDynamics(STATE_DIM, ACTION_DIM, HIDDEN, steps=STEPS)
    default.set_scales(scales[0], scales[1], 0.1 * scales[2], 0.3 * scales[3])
    result = {}
    for name, dynamics in (("printed", printed), ("default", default)):
        reward, critic = RewardModel(STATE_DIM, ACTION_DIM, HIDDEN), TwinCritic(STATE_DIM, ACTION_DIM, HIDDEN)
        critic.mlp.initialise()
        result[name] = World(dynamics, reward, critic, discount=0.97).to(torch.float64)
    return result


def policy_with_curvature() -> Actor:
    """An actor whose actions depend on the state: ReBRAC's initial one is all but constant."""
    actor = Actor(STATE_DIM, ACTION_DIM, HIDDEN)
    actor.mlp.initialise()
    return actor.to(torch.float64)


def main(names: tuple[str, ...] = ("printed", "default")) -> Ledger:
    """Check every equation in the worlds of these names, print the table, and return it."""
    torch.manual_seed(0)
    ledger = Ledger(tolerance=1e-12)
    policy = policy_with_curvature()
    everywhere = worlds()
    for world in (everywhere[name] for name in names):
        state = torch.randn(STATE_DIM, dtype=torch.float64)
        noise = torch.randn(PARTICLES, HORIZON, STEPS + 1, STATE_DIM, dtype=torch.float64)
        ours, theirs = ByJacrec(policy, world, state, noise), ByAutodiff(policy, world, state, noise)
        with torch.no_grad():
            for part in (section_3_and_4, appendix_b1, appendix_b2, appendix_b3):
                part(ledger, ours, theirs)
    print(ledger.table("equation"))
    print(ledger.conclusion("lines"))
    return ledger


if __name__ == "__main__":
    sys.exit(1 if main().failed else 0)
