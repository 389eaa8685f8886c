"""One update of ReBRAC as one call of compiled code on every thread: the twin of `ReBRAC`'s plain updates, for a CPU.

Rows of the batch are dealt out to the threads, which carry them through targets, values and cotangents without waiting
for one another; then the outputs of the weight gradients are dealt out, then the elements of the parameters. A thread
takes its rows in blocks whose activations stay in its cache.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jacrec.networks import MLP
from jacrec.training.fused_layers import adam, at, evaluate, follow, places_of, pull, pull_input, record, share, weights
from jacrec.training.native import Team, entry, library_threads, meet, part

if TYPE_CHECKING:
    from jacrec.training.rebrac import ReBRAC

BLOCK = 128  # rows at a time


@part
def _targets(first, rows, thread, c, d, m, batch, noise, actor, critic, work):
    """work.next_q ← y of the rows; their â' in the batch become a'."""
    _, widths_a, places_a, norm_a, target_a = actor
    _, widths_c, places_c, norm_c, target_c = critic
    action, q, next_q, scratch, moments = work
    policy_noise, noise_clip, critic_bc, discount = c[0], c[1], c[2], c[3]
    real, stride, x = batch.dtype.type, batch.shape[1], d + m
    one, other, mean, inv = scratch[thread, 0], scratch[thread, 1], moments[thread, 0], moments[thread, 1]
    evaluate(target_a, widths_a, places_a, norm_a, True, at(batch, first * stride + x), stride, first, rows, one, other, mean, inv,
             action)  # fmt: skip
    for r in range(first, first + rows):
        penalty = real(0)
        for j in range(m):
            jitter = min(max(noise[r, j] * real(policy_noise), -real(noise_clip)), real(noise_clip))
            a = min(max(action[r, j] + jitter, real(-1)), real(1))
            penalty += (a - batch[r, x + d + j]) ** 2
            batch[r, x + d + j] = a
        next_q[r] = penalty
    for head in range(len(places_c)):
        evaluate(target_c, widths_c, places_c[head], norm_c, False, at(batch, first * stride + x), stride, first, rows, one, other,
                 mean, inv, q[head])  # fmt: skip
    for r in range(first, first + rows):
        smallest = q[0, r, 0]
        for head in range(1, len(places_c)):
            smallest = min(smallest, q[head, r, 0])
        reward, alive = batch[r, 2 * x], batch[r, 2 * x + 1]
        next_q[r] = reward + real(discount) * alive * (smallest - real(critic_bc) * next_q[r])


@entry
def update(thread, threads, counter, steps, move, normalize, c, batch, noise, actor, critic, adam_a, adam_c, tape_a, tape_c, work,
           actor_work, totals):  # fmt: skip
    """One thread's part of an update; see `FusedReBRAC` for the arguments."""
    before = library_threads(1)
    value_a, widths_a, places_a, norm_a, target_a = actor
    value_c, widths_c, places_c, norm_c, target_c = critic
    gradient_a, first_a, second_a = adam_a
    gradient_c, first_c, second_c = adam_c
    h_a, y_a, mean_a, inv_a, sums_a = tape_a
    h_c, y_c, mean_c, inv_c, sums_c = tape_c
    action, q, next_q, scratch, moments = work
    s_a, index, x_bar, slope = actor_work
    real, stride = batch.dtype.type, batch.shape[1]
    d, m, B, heads = widths_a[0], widths_a[-1], len(batch), len(places_c)
    first, rows = share(B, thread, threads)
    begin_a, count_a = share(len(value_a), thread, threads)
    begin_c, count_c = share(len(value_c), thread, threads)
    total = totals[thread]
    total[:] = 0
    sums_c[:, thread] = 0
    for r in range(first, first + rows, BLOCK):
        n = min(BLOCK, first + rows - r)
        _targets(r, n, thread, c, d, m, batch, noise, actor, critic, work)
        for head in range(heads):
            record(value_c, widths_c, places_c[head], norm_c, False, at(batch, r * stride), stride, r, n, h_c[head], y_c[head],
                   mean_c[head], inv_c[head], q[head])  # fmt: skip
            for i in range(r, r + n):
                error = q[head, i, 0] - next_q[i]
                total[1] += q[head, i, 0]
                total[0] += error * error
                q[head, i, 0] = error * real(2 / B)
            pull(value_c, widths_c, places_c[head], norm_c, q[head], r, n, h_c[head], mean_c[head], inv_c[head],
                 scratch[thread, 0], sums_c[head, thread])  # fmt: skip
    meet(counter, threads, 1)
    for head in range(heads):
        weights(gradient_c, widths_c, places_c[head], norm_c, at(batch, 0), stride, q[head], h_c[head], y_c[head], sums_c[head],
                thread, threads)  # fmt: skip
    meet(counter, threads, 2)
    adam(value_c, gradient_c, first_c, second_c, begin_c, begin_c + count_c, c[7], steps[1])
    if move:
        meet(counter, threads, 3)
        sums_a[thread] = 0
        for r in range(first, first + rows, BLOCK):
            n = min(BLOCK, first + rows - r)
            record(value_a, widths_a, places_a, norm_a, True, at(batch, r * stride), stride, r, n, h_a, y_a, mean_a, inv_a, action)
            for i in range(r, r + n):
                s_a[i, :d] = batch[i, :d]
                s_a[i, d:] = action[i]
            for head in range(heads):
                record(value_c, widths_c, places_c[head], norm_c, False, at(s_a, r * (d + m)), d + m, r, n, h_c[head], y_c[head],
                       mean_c[head], inv_c[head], q[head])  # fmt: skip
            for i in range(r, r + n):
                least = 0
                for head in range(1, heads):
                    if q[head, i, 0] < q[least, i, 0]:
                        least = head
                index[1, i] = least
                total[2] += q[least, i, 0]
                total[3] += abs(q[least, i, 0])
            for head in range(heads):
                # only the rows in which this critic is the smallest one carry a cotangent
                some = 0
                for i in range(r, r + n):
                    if index[1, i] == head:
                        index[0, r + some] = i
                        some += 1
                if some == 0:
                    continue
                which = index[0, r : r + some]
                pull_input(value_c, widths_c, places_c[head], norm_c, which, some, h_c[head], mean_c[head], inv_c[head],
                           scratch[thread, 0], scratch[thread, 1], x_bar[thread])  # fmt: skip
                for i in range(some):
                    slope[which[i]] = x_bar[thread, i, d:]
        meet(counter, threads, 4)
        size = 0.0
        for t in range(threads):
            size += totals[t, 3]
        scale = B / size if normalize else 1.0
        for i in range(first, first + rows):
            for j in range(m):
                away = action[i, j] - batch[i, d + j]
                total[4] += away * away
                bar = away * real(2 * c[4] / B) - real(scale / B) * slope[i, j]
                slope[i, j] = bar * (1 - action[i, j] * action[i, j])
        for r in range(first, first + rows, BLOCK):
            pull(value_a, widths_a, places_a, norm_a, slope, r, min(BLOCK, first + rows - r), h_a, mean_a, inv_a, scratch[thread, 0],
                 sums_a[thread])  # fmt: skip
        meet(counter, threads, 5)
        weights(gradient_a, widths_a, places_a, norm_a, at(batch, 0), stride, slope, h_a, y_a, sums_a, thread, threads)
        follow(target_a, value_a, begin_a, begin_a + count_a, c[5])  # before the actor moves, as the reference does
        follow(target_c, value_c, begin_c, begin_c + count_c, c[5])
        meet(counter, threads, 6)
        adam(value_a, gradient_a, first_a, second_a, begin_a, begin_a + count_a, c[6], steps[0])
    library_threads(before)


class FusedReBRAC:
    """`update` on a learner's own tensors; the twin of `ReBRAC.update` for networks of ReLU on a CPU.

    Args:
        learner: whose networks, targets and moments are read and written in place.
    """

    def __init__(self, learner: "ReBRAC"):
        self.learner, c = learner, learner.config
        self.constants = np.array([c.policy_noise, c.noise_clip, c.critic_bc_coef, c.discount, c.actor_bc_coef, c.tau, c.actor_lr,
                                   c.critic_lr])  # fmt: skip
        self.actor = _network(learner.actor.mlp, learner.flat_actor, learner.flat_target_actor)
        self.critic = _network(learner.critic.mlp, learner.flat_critic, learner.flat_target_critic)
        self.adams = [tuple(t.numpy() for t in (a.flat.gradient, *a.moments())) for a in (learner.actor_adam, learner.critic_adam)]
        self.steps = [a.optimiser.state[a.parameter]["step"] for a in (learner.actor_adam, learner.critic_adam)]
        self.team, self.rows, self.work = Team(), 0, ()

    def _reserve(self, B: int, threads: int) -> None:
        """Work space for batches of B rows."""
        learner, real = self.learner, self.learner.flat_actor.value.dtype
        d, m, heads = learner.d, learner.m, learner.critic.critics
        mlps = (learner.actor.mlp, learner.critic.mlp)
        W = max(m, *(width for mlp in mlps for width in mlp.hidden))
        block = min(BLOCK, B)

        def space(*shape: int, dtype: torch.dtype = real) -> np.ndarray:
            return torch.zeros(shape, dtype=dtype).numpy()

        def tape(mlp: MLP, *lead: int) -> tuple[np.ndarray, ...]:
            L = len(mlp.hidden)
            sums = space(*lead, threads, L + 1, 3, W)
            return space(*lead, L, B, W), space(*lead, L, B, W), space(*lead, L, B), space(*lead, L, B), sums

        self.work = (
            tape(mlps[0]), tape(mlps[1], heads),
            (space(B, m), space(heads, B, 1), space(B), space(threads, 2, block, W), space(threads, 2, block)),
            (space(B, d + m), space(2, B, dtype=torch.int64), space(threads, block, d + m), space(B, m)),
            space(threads, 5, dtype=torch.float64),
        )  # fmt: skip
        self.rows = B

    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """See `ReBRAC.update`."""
        threads, c = torch.get_num_threads(), self.learner.config
        if len(batch) != self.rows or threads != len(self.work[-1]):
            self._reserve(len(batch), threads)
        for step in self.steps[0 if move_actor else 1 :]:
            step += 1
        steps = np.array([int(step) for step in self.steps])
        self.team.run(update, threads, steps, move_actor, c.normalize_q, self.constants, batch.numpy(), noise.numpy(), self.actor,
                      self.critic, *self.adams, *self.work)  # fmt: skip
        loss, q, q_policy, size, bc = torch.from_numpy(self.work[-1].sum(0) / len(batch)).to(batch.dtype)
        scalars = {"critic_loss": loss, "q": q / self.learner.critic.critics}
        if move_actor:
            scale = 1 / size if c.normalize_q else 1.0
            scalars |= {"actor_loss": c.actor_bc_coef * bc - scale * q_policy, "bc": bc, "q_policy": q_policy}
        return scalars


def _network(mlp: MLP, flat, flat_target) -> tuple:
    """value, widths, places (with the head in front where there is a stack), whether layers are normalised, target."""
    widths = np.array([mlp.in_dim, *mlp.hidden, mlp.out_dim])
    return flat.value.numpy(), widths, places_of(mlp, flat), bool(mlp.norms), flat_target.value.numpy()
