"""Algorithm 1, transcribed line by line with loops over j and i and autograd, compared with `mpc_update` and `MPC`.

`python paper_checks/algorithm_1.py` exits with 1 if a line does not agree (float64).
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from ledger import Ledger
from torch import Tensor, nn

from jacrec import MPC, Actor, DiffusionDynamics, MPCConfig, RewardModel, TwinCritic, World, mpc_update, rollout
from jacrec.engine.rollout import noise_like

STATE_DIM, ACTION_DIM, STEPS, T = 4, 2, 3, 3
SETTINGS = [(E, M, H) for E in (1, 3) for M in (1, 4) for H in (0, 1, 4)]


@dataclass
class Lines:
    """Values of the transcription at each line of one decision: lists with one entry per inner step e."""

    states: list[Tensor] = field(default_factory=list)  # lines 4 and 12, (M, H+1, d)
    actions: list[Tensor] = field(default_factory=list)  # line 8, (M, H, m)
    J_stages: list[Tensor] = field(default_factory=list)  # line 10 after the last j
    J: list[Tensor] = field(default_factory=list)  # line 15
    psi: list[Tensor] = field(default_factory=list)  # line 16, (P,)
    action: Tensor = field(default_factory=lambda: torch.empty(0))  # line 18, (m,)


def algorithm_1(
    pi: nn.Module,
    world: World,
    s_t: Tensor,
    environment: Callable[[Tensor, Tensor], Tensor],
    noise: Callable[[int, Tensor], Tensor],
    *,
    T: int,
    H: int,
    M: int,
    E: int,
    alpha: float,
) -> list[Lines]:
    """Algorithm 1 on `pi`, in place. noise(t, s_t) (M, H, K+1, d) is ε^(i)_{t:t+H-1}; one `Lines` per real step t."""
    f, r, Q, gamma = world.dynamics, world.reward, world.critic, world.discount
    psi = list(pi.parameters())
    log = []
    for t in range(T):  # line 1
        epsilon = noise(t, s_t)  # line 2 has observed s_t
        lines = Lines()
        for _ in range(E):  # line 3
            s = {(i, 0): s_t for i in range(M)}  # line 4
            a = {}
            J = torch.zeros((), dtype=s_t.dtype)  # line 5
            for j in range(H):  # line 6
                for i in range(M):  # line 7
                    a[i, j] = pi(s[i, j])  # line 8
                J = J + sum(gamma**j * r(s[i, j], a[i, j]) for i in range(M)) / M  # line 10
                for i in range(M):  # line 11
                    s[i, j + 1] = f(s[i, j], a[i, j], epsilon[i, j])  # line 12
            lines.J_stages.append(J.detach())
            J = J + sum(gamma**H * Q(s[i, H], pi(s[i, H])) for i in range(M)) / M  # line 15
            gradient = torch.autograd.grad(J, psi)
            with torch.no_grad():
                for p, g in zip(psi, gradient, strict=True):  # line 16
                    p.copy_(p + alpha * g)
            lines.states.append(grid(s, M, H + 1, s_t))
            lines.actions.append(grid(a, M, H, pi(s_t)))
            lines.J.append(J.detach())
            lines.psi.append(flat(pi))
        lines.action = pi(s_t).detach()  # line 18
        s_t = environment(s_t, lines.action)
        log.append(lines)
    return log


def grid(entries: dict[tuple[int, int], Tensor], M: int, steps: int, like: Tensor) -> Tensor:
    """Entries [i, j] as one tensor (M, steps, ·)."""
    rows = [entries[i, j].detach() for i in range(M) for j in range(steps)]
    return torch.stack(rows).unflatten(0, (M, steps)) if rows else like.new_zeros(M, 0, like.shape[-1])


def flat(policy: nn.Module) -> Tensor:
    """ψ as one vector (P,)."""
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()])


def compare(ledger: Ledger, actor: Actor, world: World, s_1: Tensor, *, E: int, M: int, H: int, alpha: float = 0.05) -> None:
    """One setting: T real steps by the transcription, by `mpc_update`, and by `MPC`."""
    seed = torch.Generator().manual_seed(7)
    packs = [noise_like(world, s_1, M, H, seed) for _ in range(T)]
    log = algorithm_1(copy.deepcopy(actor), world, s_1, environment, lambda t, _: packs[t], T=T, H=H, M=M, E=E, alpha=alpha)
    ours, s_t = copy.deepcopy(actor), s_1
    controller = MPC(actor, world, MPCConfig(horizon=H, particles=M, updates=E, lr=alpha, seed=7))
    for t, (lines, noise) in enumerate(zip(log, packs, strict=True)):
        one_by_one = copy.deepcopy(ours)
        for e in range(E):
            with torch.no_grad():
                imagined = rollout(one_by_one, world, s_t.unsqueeze(0), noise.unsqueeze(0))
                states, actions = imagined.states[0], imagined.actions[0, :, :H]
                reward = world.reward(states[:, :H], actions)
            before = flat(one_by_one)
            step = mpc_update(one_by_one, world, s_t, noise=noise, updates=1, lr=alpha)
            expected = lines.psi[e] - (lines.psi[e - 1] if e else log[t - 1].psi[-1] if t else flat(actor))
            discounts = world.discount ** torch.arange(H, dtype=s_t.dtype)
            ledger.check("4", "s̃_0 ← s_t for all i", "jacrec/engine/rollout.py", (states[:, 0], lines.states[e][:, 0]))
            ledger.check("8", "ã_j ← π_ψ(s̃_j)", "jacrec/engine/rollout.py", (actions, lines.actions[e]))
            ledger.check(
                "10",
                "J ← J + 1/M Σ_i γ^j r(s̃_j, ã_j)",
                "jacrec/engine/rollout.py",
                ((reward.mean(0) * discounts).sum(), lines.J_stages[e]),
            )
            ledger.check("12", "s̃_{j+1} ← f(s̃_j, ã_j, ε_{t+j})", "jacrec/engine/rollout.py", (states, lines.states[e]))
            ledger.check(
                "15", "J ← J + 1/M Σ_i γ^H Q(s̃_H, π_ψ(s̃_H))", "jacrec/engine/gradient.py", (step.objective[0], lines.J[e])
            )
            ledger.check(
                "16", "ψ ← ψ + α ∇_ψ J: the change of ψ", "jacrec/control/ascent.py", (flat(one_by_one) - before, expected)
            )
        whole = mpc_update(ours, world, s_t, noise=noise, updates=E, lr=alpha)
        ledger.check(
            "3",
            "for e = 1 … E in one call: every J, and ψ after the last",
            "jacrec/control/mpc.py",
            (whole.objective, torch.stack(lines.J)),
            (flat(ours), lines.psi[-1]),
        )
        acted = controller.act(s_t)
        ledger.check(
            "18", "execute a_t ← π_ψ(s_t)", "jacrec/control/mpc.py", (whole.action, lines.action), (acted, lines.action)
        )
        ledger.check(
            "1",
            "for t = 1 … T: ψ carried by the controller",
            "jacrec/control/controller.py",
            (flat(controller.policy), lines.psi[-1]),
        )
        s_t = environment(s_t, lines.action)


def environment(s: Tensor, a: Tensor) -> Tensor:
    """A stand-in for the real environment: s_{t+1} from s_t (d,) and a_t (m,)."""
    return 0.9 * s.roll(1) + a.repeat(STATE_DIM // ACTION_DIM)


def main() -> Ledger:
    """Compare all settings, print the table, and return it."""
    torch.manual_seed(0)
    ledger = Ledger(tolerance=1e-12)
    actor = Actor(STATE_DIM, ACTION_DIM, (16, 16))
    actor.mlp.initialise()
    critic = TwinCritic(STATE_DIM, ACTION_DIM, (16, 16))
    critic.mlp.initialise()
    dynamics = DiffusionDynamics(STATE_DIM, ACTION_DIM, (16, 16), steps=STEPS)
    world = World(dynamics, RewardModel(STATE_DIM, ACTION_DIM, (16, 16)), critic, 0.97).to(torch.float64)
    actor = actor.to(torch.float64)
    s_1 = torch.randn(STATE_DIM, dtype=torch.float64)
    for E, M, H in SETTINGS:
        compare(ledger, actor, world, s_1, E=E, M=M, H=H)
    ledger.rows = dict(sorted(ledger.rows.items(), key=lambda item: int(item[0])))
    print(f"T = {T} real steps at every (E, M, H) in {SETTINGS}")
    print(ledger.table("line"))
    print(ledger.conclusion("lines"))
    return ledger


if __name__ == "__main__":
    sys.exit(1 if main().failed else 0)
