"""What every sampler in jacrec is: a chain of maps h_k, affine in the latent, in one network and in the noise."""

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

    A sampler of second order looks back: beside u a call may keep p = keep_u[k] u + keep_net[k] net, and add c_p p in the
    next call; both tables are None for samplers of first order.

    A subclass makes its `denoiser` and calls `set_chain`.
    """

    denoiser: Denoiser
    time: Tensor

    def set_chain(
        self,
        times: Sequence[Time],
        c_u: Sequence[float],
        c_net: Sequence[float],
        sigma: Sequence[float] | None = None,
        c_p: Sequence[float] | None = None,
        keep: Sequence[tuple[float, float]] | None = None,
        *,
        noises: int = 1,
    ) -> None:
        """Take the tables of the K steps; entry k−1 belongs to h_k.

        Args:
            times: what tells the network which step it is at: a number, or as many as `denoiser.times`.
            c_u, c_net, sigma: as in the class; no sigma is none but 0.
            c_p, keep: of samplers of second order; keep is (keep_u, keep_net).
            noises: rows of noise that one transition takes: the last is the base sample, row k−1 is z_k where σ is not 0.
        """
        # plain floats: exact in every dtype, and no device to wait for when a step reads them
        self.times, self.noises = tuple(times), noises
        self.c_u, self.c_net, self.sigma = list(c_u), list(c_net), [0.0] * len(c_u) if sigma is None else list(sigma)
        self.c_p, self.keep = None if c_p is None else list(c_p), None if keep is None else list(keep)
        self.register_buffer("time", self._exact_time(), persistent=False)

    def _exact_time(self) -> Tensor:
        """The times in int64 or float64, whatever the weights are in."""
        return torch.tensor(self.times, dtype=torch.int64 if isinstance(self.times[0], int) else torch.float64)

    def _apply(self, fn, recurse=True):
        """`to`, `float`, `cuda` and the like move the times, and never round them."""
        super()._apply(fn, recurse)
        self.time = self._exact_time().to(self.time.device)
        return self

    @property
    def diffusion_steps(self) -> int:
        """K, the number of network evaluations that one transition takes."""
        return len(self.times)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """(rows, d): the shape of one transition's noise; (K+1, d) where every step has noise of its own."""
        return (self.noises, self.state_dim)

    def g(self, z: Tensor) -> Tensor:
        """g_K, (23): the base sample is the noise itself."""
        return z

    def network(self, k: int, u: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """The network at step k: latent u (..., d), state in the data's units (..., d), action (..., m) -> (..., d)."""
        time = self.time[k - 1]
        return self.denoiser(u, time.expand((*u.shape[:-1], *time.shape)), self.standardise(state), action)

    def h(self, k: int, u: Tensor, state: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """h_k, (1): one step from s^(k) = u to s^(k−1), of a sampler of first order. All (..., d), action (..., m)."""
        i = k - 1
        return self.c_u[i] * u + self.c_net[i] * self.network(k, u, state, action) + self.sigma[i] * z

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """state (..., d), action (..., m), noise (..., rows, d) -> next state (..., d)."""
        u = self.g(noise[..., self.noises - 1, :])  # (23)
        p = torch.zeros_like(u)
        for k in range(self.diffusion_steps, 0, -1):
            i = k - 1
            net = self.network(k, u, state, action)
            following = self.c_u[i] * u + self.c_net[i] * net  # (24)
            if self.sigma[i]:
                following = following + self.sigma[i] * noise[..., i, :]
            if self.c_p is not None and self.keep is not None:
                following = following + self.c_p[i] * p
                p = self.keep[i][0] * u + self.keep[i][1] * net
            u = following
        return self.decode(state, u)  # (25)
