"""jacrec's side of `theorem_4_1.py`: the objects of the theorem as computed by jacrec, in the theorem's shapes."""

import copy
from unittest.mock import patch

import torch
from torch import Tensor

from jacrec import Actor, DiffusionDynamics, DynamicsJacobians, Sensitivities, World, linearize, policy_gradient
from jacrec.engine import linearize as plain
from jacrec.engine.gradient import Pi_psi
from jacrec.engine.jacobians.chain import chain_forward
from jacrec.engine.jacobians.dynamics import dynamics_pass, unit_directions
from jacrec.engine.jacobians.policy import policy_pass
from jacrec.engine.methods import Method
from jacrec.engine.sensitivities import action_step, dense_action_step, dense_state_step, state_step


class ByJacrec:
    """The objects of Theorem 4.1 along M trajectories from s_t (d,) under noise (M, H, K+1, d)."""

    def __init__(self, policy: Actor, world: World, state: Tensor, noise: Tensor):
        assert isinstance(world.dynamics, DiffusionDynamics)
        self.policy, self.world, self.dynamics = policy, world, world.dynamics
        self.state, self.noise, self.H = state, noise, noise.shape[1]
        self.passes = dynamics_pass(world.dynamics)
        # the equations as they stand in the engine; the tests compare compiled code with that
        with patch.object(plain, "compiled", lambda p, form: None):
            self.lin = linearize(policy, world, state, noise)
        with torch.no_grad():
            at = [policy_pass(policy, s.unsqueeze(0)) for s in self.lin.states.unbind(1)]
            self.Pi_psi = torch.stack([Pi_psi(pi).squeeze(0) for pi in at], 1)  # (M, H+1, m, P)
            self.G, self.D = self._factored()
            self.dense_G, self.dense_D = self._dense()

    def _factored(self) -> tuple[Tensor, Tensor]:
        """G (M, H+1, d, P) and D (M, H+1, m, P) from the coefficients C and E."""
        lin, m = self.lin, self.lin.actions.shape[-1]
        C = lin.states.new_zeros(1, lin.states.shape[0], 0, lin.states.shape[-1])
        G, D = [], []
        for j in range(self.H + 1):
            E = action_step(C, lin.Pi_s[None, :, j] if j else None, m)
            factors = Sensitivities(C.unflatten(-2, (j, m)), E.unflatten(-2, (j + 1, m)))
            for kept, x in zip((G, D), factors.dense(self.Pi_psi[None, :, : j + 1]), strict=True):
                kept.append(x.squeeze(0))
            if j < self.H:
                _, C = state_step(self.passes, lin.states[None, :, j], lin.actions[None, :, j], self.noise[None, :, j], C, E)
        return torch.stack(G, 1), torch.stack(D, 1)

    def _dense(self) -> tuple[Tensor, Tensor]:
        """The same by the recursions as printed."""
        lin = self.lin
        G, D = [torch.zeros_like(self.G[:, 0])], []
        for j in range(self.H + 1):
            D.append(dense_action_step(G[j], lin.Pi_s[:, j], self.Pi_psi[:, j]))
            if j < self.H:
                G.append(dense_state_step(G[j], D[j], DynamicsJacobians(lin.F_s[:, j], lin.F_a[:, j])))
        return torch.stack(G, 1), torch.stack(D, 1)

    def pushed(self, j: int) -> Tensor:
        """F_s(j) G_j + F_a(j) D_j with the P columns of G_j and D_j pushed through the chain as tangents: (M, d, P)."""
        lin = self.lin
        at = lin.states[:, j], lin.actions[:, j], self.noise[:, j]
        with torch.no_grad():
            _, columns = self.passes.push(*at, self.G[:, j].mT.contiguous(), self.D[:, j].mT.contiguous())
        return columns.mT

    def gradient(self, method: Method) -> Tensor:
        """∇_ψ L of each noise sequence by `method`: (M, P)."""
        return torch.stack([self.mean_gradient(method, noise.unsqueeze(0)) for noise in self.noise])

    def mean_gradient(self, method: Method, noise: Tensor | None = None) -> Tensor:
        """∇_ψ Ĵ by `method`: (P,)."""
        result = policy_gradient(self.policy, self.world, self.state, self.noise if noise is None else noise, method=method)
        return torch.cat([g.reshape(-1) for g in result.gradient.values()])

    def chain(self, k: int, s: Tensor, a: Tensor, packs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s^(k) (B, d), A_k (B, d, m), B_k (B, d, d): the chain stopped after the steps K … k+1."""
        upper = copy.copy(self.dynamics)
        upper._buffers = {**self.dynamics._buffers, "time": self.dynamics.time[k:]}
        upper.times, upper.noises = self.dynamics.times[k:], self.dynamics.noises - k
        upper.c_u, upper.c_net, upper.sigma = (table[k:] for table in (upper.c_u, upper.c_net, upper.sigma))
        # the latent itself, not the next state that it stands for
        upper._buffers |= {"out_mean": torch.zeros_like(upper.out_mean), "out_std": torch.ones_like(upper.out_std)}
        upper.target = "state"
        with torch.no_grad():
            value, columns = chain_forward(upper, s, a, packs[:, k:], *unit_directions(s, a))
        d = s.shape[-1]
        return value, columns[:, d:].mT, columns[:, :d].mT
