"""The common form of jacrec's samplers: a chain of maps h_k, affine in the latent, in one network and in the noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jacrec.models.dynamics.base import ScaledDynamics
from jacrec.models.networks import Denoiser

Time = float | tuple[float, ...]


class ChainDynamics(ScaledDynamics):
    """s' = f_θ(s, a, ε): the composition of g_K and h_K … h_1, (23)–(25), with

        h_k(u) = c_u[k] u + c_net[k] net(u, times[k], (s, a)) + sigma[k] z_k                                     (1)

    on x, the standardised state difference (or next state, `target`). Diffusion, flow matching and MeanFlow differ in these
    tables and in their losses; the derivatives, the kernels and their tests are one.

    A subclass constructs its `denoiser` and calls `set_chain`.
    """

    denoiser: Denoiser
    time: Tensor

    def set_chain(
        self,
        times: Sequence[Time],
        c_u: Sequence[float],
        c_net: Sequence[float],
        sigma: Sequence[float] | None = None,
        *,
        noises: int = 1,
    ) -> None:
        """Set the tables of the K steps; entry k−1 belongs to h_k.

        Args:
            times: the network's time input at each step: a number, or as many as `denoiser.times`.
            c_u, c_net, sigma: as in the class; default of sigma: all 0.
            noises: rows of noise of one transition: the last is the base sample, row k−1 is z_k where σ is not 0.
        """
        # plain floats: exact in every dtype, and no device to wait for when a step reads them
        self.times, self.noises = tuple(times), noises
        self.c_u, self.c_net, self.sigma = list(c_u), list(c_net), [0.0] * len(c_u) if sigma is None else list(sigma)
        self.register_buffer("time", self._exact_time(), persistent=False)

    def _exact_time(self) -> Tensor:
        """The times in int64 or float64, whatever the weights are in."""
        return torch.tensor(self.times, dtype=torch.int64 if isinstance(self.times[0], int) else torch.float64)

    def _apply(self, fn, recurse=True):
        """`to`, `float`, `cuda` etc. move the times without rounding them."""
        super()._apply(fn, recurse)
        self.time = self._exact_time().to(self.time.device)
        return self

    @property
    def diffusion_steps(self) -> int:
        """K, the number of network evaluations of one transition."""
        return len(self.times)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(rows, d): the shape of one transition's noise; (K+1, d) where each step has its own noise."""
        return (self.noises, self.state_dim)

    def g(self, z: Tensor) -> Tensor:
        """g_K, (23): the base sample is the noise itself."""
        return z

    def network(self, k: int, u: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The network at step k: latent u (..., d), state in the data's units (..., d), action (..., m) -> (..., d)."""
        time = self.time[k - 1]
        return self.denoiser(u, time.expand((*u.shape[:-1], *time.shape)), self.standardise(state), action)

    def h(self, k: int, u: Tensor, state: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """h_k, (1): one step from s^(k) = u to s^(k−1). All (..., d), action (..., m)."""
        i = k - 1
        return self.c_u[i] * u + self.c_net[i] * self.network(k, u, state, action) + self.sigma[i] * z

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """state (..., d), action (..., m), noise (..., rows, d) -> next state (..., d)."""
        u = self.g(noise[..., self.noises - 1, :])  # (23)
        for k in range(self.diffusion_steps, 0, -1):
            i = k - 1
            net = self.network(k, u, state, action)
            following = self.c_u[i] * u + self.c_net[i] * net  # (24)
            if self.sigma[i]:
                following = following + self.sigma[i] * noise[..., i, :]
            u = following
        return self.decode(state, u)  # (25)


def chain_reason(f: ChainDynamics) -> str | None:
    """Why a sampler's tables are not those of a chain, or not those of its network."""
    K, denoiser = f.diffusion_steps, f.denoiser
    if f.noises not in (1, K + 1) or (f.noises == 1 and any(f.sigma)):
        return f"dynamics: expected {K + 1} rows of noise, or 1 where σ is 0, got {f.noises}"
    lengths = [len(x) for x in (f.times, f.c_u, f.c_net, f.sigma)]
    if lengths != [K] * 4:
        return f"dynamics: expected {K} entries in each of times, c_u, c_net and sigma, got {lengths}"
    expected, got = (f.state_dim, f.action_dim), (denoiser.state_dim, denoiser.action_dim)
    if got != expected:
        return f"dynamics: expected a denoiser with (state_dim, action_dim) = {expected}, got {got}"
    shape = (K,) if denoiser.times == 1 else (K, denoiser.times)
    if tuple(f.time.shape) != shape:
        return f"dynamics.time: expected shape {shape}, got {tuple(f.time.shape)}"
    return None
