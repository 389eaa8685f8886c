"""The independent side of `theorem_4_1.py`: a plain rollout, differentiated by torch.func.

The reverse step, the chain and the rollout are transcribed from the paper; only the networks' `forward` and the schedule
α_1 … α_K come from jacrec.
"""

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from jacrec import Actor, DiffusionDynamics, World
from jacrec.models.dynamics.schedule import alphas


class ByAutodiff:
    """M imagined trajectories from s_t (d,) under noise (M, H, K+1, d), as functions of ψ flattened to (P,)."""

    def __init__(self, policy: Actor, world: World, state: Tensor, noise: Tensor):
        assert isinstance(world.dynamics, DiffusionDynamics)
        self.policy, self.world, self.dynamics = policy, world, world.dynamics
        self.state, self.noise = state, noise
        self.M, self.H, self.gamma = noise.shape[0], noise.shape[1], world.discount
        self.K = noise.shape[2] - 1
        self.shapes = {name: p.shape for name, p in policy.named_parameters()}
        self.psi = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
        self.alpha = alphas(str(self.dynamics.config["schedule"]), self.K)
        self.alpha_bar = torch.cumprod(self.alpha, 0)
        self.states, self.actions = self.over_noise(self.rollout)  # (M, H+1, d), (M, H+1, m)
        self.G = self.gradient(lambda psi, noise: self.rollout(psi, noise)[0])  # (M, H+1, d, P)
        self.D = self.gradient(lambda psi, noise: self.rollout(psi, noise)[1])  # (M, H+1, m, P)
        self.Pi_s = self.rows(lambda s: self.pi(self.psi, s), self.states)  # (M, H+1, m, d)
        self.Pi_psi = self.rows(lambda psi, s: self.pi(psi, s), self.psi.expand(*self.states.shape[:2], -1), self.states)
        visited = self.states[:, :-1], self.actions[:, :-1]
        self.F_s = self.rows(self.f, *visited, noise)  # (M, H, d, d)
        self.F_a = self.rows(self.f, *visited, noise, by=1)  # (M, H, d, m)
        self.r_s, self.r_a = (self.rows(world.reward, *visited, by=i) for i in (0, 1))  # (M, H, d), (M, H, m)
        last = self.states[:, -1:], self.actions[:, -1:]
        self.Q_s, self.Q_a = (self.rows(world.critic, *last, by=i).squeeze(1) for i in (0, 1))  # (M, d), (M, m)

    def named(self, psi: Tensor) -> dict[str, Tensor]:
        """ψ (P,) by parameter names."""
        pieces = psi.split([shape.numel() for shape in self.shapes.values()])
        return {name: x.reshape(shape) for (name, shape), x in zip(self.shapes.items(), pieces, strict=True)}

    def pi(self, psi: Tensor, s: Tensor) -> Tensor:
        """π_ψ(s)."""
        return functional_call(self.policy, self.named(psi), (s,))

    def h(self, k: int, u: Tensor, s: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """h_k of (1), with (1−α_k)/√(1−ᾱ_k) in front of ε̂, or with (1−α_k) for the sampler "printed"."""
        alpha, bar = self.alpha[k - 1], self.alpha_bar[k - 1]
        previous = self.alpha_bar[k - 2] if k > 1 else torch.ones_like(bar)
        sigma = ((1 - alpha) * (1 - previous) / (1 - bar)).sqrt()
        factor = 1 - alpha if self.dynamics.config["sampler"] == "printed" else (1 - alpha) / (1 - bar).sqrt()
        scaled = (s - self.dynamics.state_mean) / self.dynamics.state_std
        noise_in_u = self.dynamics.denoiser(u, torch.tensor(k).expand(u.shape[:-1]), scaled, a)
        return (u - factor * noise_in_u) / alpha.sqrt() + sigma * z

    def chain(self, s: Tensor, a: Tensor, pack: Tensor) -> list[Tensor]:
        """s^(0) … s^(K) from s (d,), a (m,) and ε = (z_K … z_0), pack (K+1, d)."""
        latents = [pack[self.K]]
        for k in range(self.K, 0, -1):
            latents.append(self.h(k, latents[-1], s, a, pack[k - 1]))
        return latents[::-1]

    def f(self, s: Tensor, a: Tensor, pack: Tensor) -> Tensor:
        """f_θ(s, a, ε): s^(0) in the data's units, added to s where the chain models the difference."""
        x = self.dynamics.out_mean + self.dynamics.out_std * self.chain(s, a, pack)[0]
        return s + x if self.dynamics.target == "difference" else x

    def rollout(self, psi: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """s̃_0 … s̃_H (H+1, d) and ã_0 … ã_H (H+1, m) of one noise sequence (H, K+1, d)."""
        s = self.state
        states, actions = [s], [self.pi(psi, s)]
        for j in range(self.H):
            s = self.f(s, actions[-1], noise[j])
            states.append(s)
            actions.append(self.pi(psi, s))
        return torch.stack(states), torch.stack(actions)

    def rewards(self, psi: Tensor, noise: Tensor) -> Tensor:
        """r_ξ(s̃_j, ã_j) for j < H, (H,)."""
        states, actions = self.rollout(psi, noise)
        return self.world.reward(states[:-1], actions[:-1])

    def terminal(self, psi: Tensor, noise: Tensor) -> Tensor:
        """V_T = Q_φ(s̃_H, ã_H), ()."""
        states, actions = self.rollout(psi, noise)
        return self.world.critic(states[-1], actions[-1])

    def L(self, psi: Tensor, noise: Tensor) -> Tensor:
        """The return of one noise sequence, ()."""
        total = self.gamma**self.H * self.terminal(psi, noise)
        for j, reward in enumerate(self.rewards(psi, noise)):
            total = total + self.gamma**j * reward
        return total

    def J(self, psi: Tensor) -> Tensor:
        """Ĵ: the mean of L over the M noise sequences, ()."""
        return self.over_noise(self.L, psi).mean()

    def over_noise(self, function, psi: Tensor | None = None):
        """function(ψ, one noise sequence), stacked over the M sequences."""
        return vmap(function, in_dims=(None, 0))(self.psi if psi is None else psi, self.noise)

    def gradient(self, function) -> Tensor:
        """∇_ψ of function(ψ, one noise sequence) for each of the M: (M, …, P)."""
        return self.over_noise(jacrev(function))

    def rows(self, function, *arguments: Tensor, by: int = 0) -> Tensor:
        """The Jacobian of `function` by its argument `by`, at every row of arguments with two leading axes (M, steps)."""
        return vmap(vmap(jacrev(function, argnums=by)))(*arguments)

    def chain_rows(self, s: Tensor, a: Tensor, packs: Tensor) -> list[Tensor]:
        """s^(0) … s^(K), each (B, d), for s (B, d), a (B, m), packs (B, K+1, d)."""
        return [torch.stack(column) for column in zip(*map(self.chain, s, a, packs), strict=True)]

    def chain_gradient(self, k: int, argument: int, s: Tensor, a: Tensor, packs: Tensor) -> Tensor:
        """∇ s^(k) by s (argument 0) or a (argument 1), differentiating the whole chain above k."""
        return vmap(jacrev(lambda s, a, pack: self.chain(s, a, pack)[k], argnums=argument))(s, a, packs)

    def partials(self, k: int, u: Tensor, s: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∂h_k/∂u, ∂h_k/∂s, ∂h_k/∂a at rows (B, ·)."""
        by_u, by_s, by_a = vmap(jacrev(lambda u, s, a, z: self.h(k, u, s, a, z), argnums=(0, 1, 2)))(u, s, a, z)
        return by_u, by_s, by_a
