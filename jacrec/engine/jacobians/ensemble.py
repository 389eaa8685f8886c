"""The ensemble's dynamics with its Jacobians as products, each row through the network that its noise picks."""

import torch
from torch import Tensor

from jacrec.engine.jacobians.mlp import affine_push, join, mlp_pull, mlp_push, mlp_record, split
from jacrec.models.dynamics.ensemble import EnsembleDynamics, bounded


class Seats:
    """B rows laid out by the member that serves them, (n, c, ...), c the most that one of them serves; empty seats are 0.

    So that no row goes through a network other than its own; c is read back from the device.
    """

    def __init__(self, member: Tensor, members: int):
        order = torch.argsort(member, stable=True)
        counts = torch.bincount(member, minlength=members)
        before = (counts.cumsum(0) - counts)[member[order]]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(member), device=member.device) - before
        self.members, self.width = members, int(counts.max())
        self.seat = member * self.width + place

    def spread(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (n, c, ...)."""
        seats = rows.new_zeros(self.members * self.width, *rows.shape[1:])
        seats[self.seat] = rows
        return seats.unflatten(0, (self.members, self.width))

    def collect(self, seats: Tensor) -> Tensor:
        """(n, c, ...) -> (B, ...)."""
        return seats.flatten(0, 1)[self.seat]


class EnsemblePass:
    """`DynamicsPass` of one Gaussian network per row."""

    def __init__(self, dynamics: EnsembleDynamics):
        self.dynamics = dynamics

    def step(self, state, action, noise):
        return self.record(state, action, noise)[0]

    def push(self, state, action, noise, ds, da):
        f, seats = self.dynamics, self._seats(noise)
        inputs = join(torch.cat([f.standardise(state), action], -1), torch.cat([ds / f.state_std, da], -1))
        rows = seats.collect(mlp_push(f.mlp, affine_push(f.mlp.layers[0], seats.spread(inputs))))
        (mean, raw), (d_mean, d_raw) = (x.chunk(2, -1) for x in split(rows))
        spread, slope = self._scaled(raw, noise)
        tangents = (d_mean + slope.unsqueeze(-2) * d_raw) * f.out_std
        return f.decode(state, mean + spread), tangents + ds if f.target == "difference" else tangents

    def record(self, state, action, noise):
        f, seats = self.dynamics, self._seats(noise)
        first = f.mlp.layers[0]
        output, tape = mlp_record(f.mlp, first(seats.spread(torch.cat([f.standardise(state), action], -1))))
        mean, raw = seats.collect(output).chunk(2, -1)
        spread, slope = self._scaled(raw, noise)

        def pull(cotangent: Tensor) -> tuple[Tensor, Tensor]:
            x_bar = cotangent * f.out_std
            y_bar = seats.spread(torch.cat([x_bar, x_bar * slope], -1))
            v = seats.collect(mlp_pull(f.mlp, tape, y_bar) @ first.weight)
            v_s, v_a = v[:, : f.state_dim] / f.state_std, v[:, f.state_dim :]
            return v_s + cotangent if f.target == "difference" else v_s, v_a

        return f.decode(state, mean + spread), pull

    def _seats(self, noise: Tensor) -> Seats:
        return Seats(self.dynamics.member(noise), self.dynamics.members)

    @staticmethod
    def _scaled(raw: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """σ ⊙ z, and its derivative by the network's output: (B, d) each."""
        log_variance, slope = bounded(raw)
        spread = torch.exp(log_variance / 2) * noise[:, 0]
        return spread, 0.5 * spread * slope
