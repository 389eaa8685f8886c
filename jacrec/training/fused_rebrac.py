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

BLOCK = 256  # rows at a time


@part
def _next_actions(first, rows, thread, c, batch, noise, actor, work):
    """The rows' â' in the batch become a'; work's `goal` is ‖a' − â'‖²."""
    _, widths, places, norm, target = actor
    action, _, goal, scratch, moments, _ = work
    real, stride, d, m = batch.dtype.type, batch.shape[1], widths[0], widths[-1]
    evaluate(
        target,
        widths,
        places,
        norm,
        True,
        at(batch, first * stride + d + m),
        stride,
        first,
        rows,
        scratch[thread, 0],
        scratch[thread, 1],
        moments[thread, 0],
        moments[thread, 1],
        action,
    )
    for r in range(first, first + rows):
        penalty = real(0)
        for j in range(m):
            jitter = min(max(noise[r, j] * real(c[0]), -real(c[1])), real(c[1]))
            a = min(max(action[r, j] + jitter, real(-1)), real(1))
            away = a - batch[r, d + m + d + j]
            penalty += away * away
            batch[r, d + m + d + j] = a
        goal[r] = penalty


@part
def _least(q, i):
    """Which critic values row i least."""
    least = 0
    for head in range(1, len(q)):
        if q[head, i, 0] < q[least, i, 0]:
            least = head
    return least


@entry
def update(
    thread,
    threads,
    counter,
    steps,
    move,
    normalize,
    c,
    batch,
    noise,
    actor,
    critic,
    adam_a,
    adam_c,
    tape_a,
    tape_c,
    work,
    more,
    totals,
):
    """One thread's part of an update; see `FusedReBRAC` for the arguments."""
    before = library_threads(1)
    value_a, widths_a, places_a, norm_a, target_a = actor
    value_c, widths_c, places_c, norm_c, target_c = critic
    h_a, y_a, mean_a, inv_a, sums_a = tape_a
    h_c, y_c, mean_c, inv_c, sums_c = tape_c
    action, q, goal, scratch, moments, few = work
    error, s_a, index, x_bar, slope = more
    real, stride = batch.dtype.type, batch.shape[1]
    d, m, B, heads = widths_a[0], widths_a[-1], len(batch), len(places_c)
    x, one, other, total = d + m, scratch[thread, 0], scratch[thread, 1], totals[thread]
    # threads that a critic can have for itself keep its parameters in their cache
    groups = heads if threads % heads == 0 else 1
    mates = threads // groups
    mate, low, high = thread % mates, thread // mates * heads // groups, (thread // mates + 1) * heads // groups
    my_first, my_rows = share(B, thread, threads)
    first, rows = share(B, mate, mates)
    my_end, end = my_first + my_rows, first + rows
    total[:] = 0
    for r in range(my_first, my_end, BLOCK):
        _next_actions(r, min(BLOCK, my_end - r), thread, c, batch, noise, actor, work)
    meet(counter, threads, 1)
    for r in range(first, end, BLOCK):
        for head in range(low, high):
            evaluate(
                target_c,
                widths_c,
                places_c[head],
                norm_c,
                False,
                at(batch, r * stride + x),
                stride,
                r,
                min(BLOCK, end - r),
                one,
                other,
                moments[thread, 0],
                moments[thread, 1],
                q[head],
            )
    meet(counter, threads, 2)
    for head in range(low, high):
        sums_c[head, mate] = 0
        for r in range(first, end, BLOCK):
            n = min(BLOCK, end - r)
            record(
                value_c,
                widths_c,
                places_c[head],
                norm_c,
                False,
                at(batch, r * stride),
                stride,
                r,
                n,
                h_c[head],
                y_c[head],
                True,
                mean_c[head],
                inv_c[head],
                error[head],
            )
            for i in range(r, r + n):
                least = q[_least(q, i), i, 0] - real(c[2]) * goal[i]
                y = batch[i, 2 * x] + real(c[3]) * batch[i, 2 * x + 1] * least
                e = error[head, i, 0] - y
                total[1] += error[head, i, 0]
                total[0] += e * e
                error[head, i, 0] = e * real(2 / B)
            pull(
                value_c,
                widths_c,
                places_c[head],
                norm_c,
                error[head],
                r,
                n,
                h_c[head],
                mean_c[head],
                inv_c[head],
                one,
                sums_c[head, mate],
            )
    met = 2
    if mates > 1:
        met += 1
        meet(counter, threads, met)
    for head in range(low, high):
        weights(
            adam_c[0],
            widths_c,
            places_c[head],
            norm_c,
            at(batch, 0),
            stride,
            error[head],
            h_c[head],
            y_c[head],
            sums_c[head],
            few[thread],
            mate,
            mates,
        )
        adam(value_c, *adam_c, widths_c, places_c[head], norm_c, c[7], steps[1], mate, mates)
    if move:
        sums_a[thread] = 0
        for r in range(my_first, my_end, BLOCK):
            n = min(BLOCK, my_end - r)
            record(
                value_a,
                widths_a,
                places_a,
                norm_a,
                True,
                at(batch, r * stride),
                stride,
                r,
                n,
                h_a,
                y_a,
                True,
                mean_a,
                inv_a,
                action,
            )
            for i in range(r, r + n):
                s_a[i, :d] = batch[i, :d]
                s_a[i, d:] = action[i]
        meet(counter, threads, met + 1)
        for head in range(low, high):
            for r in range(first, end, BLOCK):
                record(
                    value_c,
                    widths_c,
                    places_c[head],
                    norm_c,
                    False,
                    at(s_a, r * x),
                    x,
                    r,
                    min(BLOCK, end - r),
                    h_c[head],
                    scratch[thread, :1],
                    False,
                    mean_c[head],
                    inv_c[head],
                    q[head],
                )
        meet(counter, threads, met + 2)
        for head in range(low, high):
            for r in range(first, end, BLOCK):
                # only the rows in which this critic is the smallest one carry a cotangent
                some = 0
                for i in range(r, min(r + BLOCK, end)):
                    if _least(q, i) == head:
                        index[thread, some] = i
                        some += 1
                        total[2] += q[head, i, 0]
                        total[3] += abs(q[head, i, 0])
                if some == 0:
                    continue
                pull_input(
                    value_c,
                    widths_c,
                    places_c[head],
                    norm_c,
                    index[thread],
                    some,
                    h_c[head],
                    mean_c[head],
                    inv_c[head],
                    one,
                    other,
                    x_bar[thread],
                )
                for i in range(some):
                    slope[index[thread, i]] = x_bar[thread, i, d:]
        meet(counter, threads, met + 3)
        size = 0.0
        for t in range(threads):
            size += totals[t, 3]
        scale = B / size if normalize else 1.0
        for r in range(my_first, my_end, BLOCK):
            n = min(BLOCK, my_end - r)
            for i in range(r, r + n):
                for j in range(m):
                    away = action[i, j] - batch[i, d + j]
                    total[4] += away * away
                    bar = away * real(2 * c[4] / B) - real(scale / B) * slope[i, j]
                    slope[i, j] = bar * (1 - action[i, j] * action[i, j])
            pull(value_a, widths_a, places_a, norm_a, slope, r, n, h_a, mean_a, inv_a, one, sums_a[thread])
        meet(counter, threads, met + 4)
        weights(
            adam_a[0], widths_a, places_a, norm_a, at(batch, 0), stride, slope, h_a, y_a, sums_a, few[thread], thread, threads
        )
        # before the actor moves, as the reference does
        follow(target_a, value_a, widths_a, places_a, norm_a, c[5], thread, threads)
        adam(value_a, *adam_a, widths_a, places_a, norm_a, c[6], steps[0], thread, threads)
        for head in range(low, high):
            follow(target_c, value_c, widths_c, places_c[head], norm_c, c[5], mate, mates)
    library_threads(before)


class FusedReBRAC:
    """`update` on a learner's own tensors; the twin of `ReBRAC.update` for networks of ReLU on a CPU.

    Args:
        learner: whose networks, targets and moments are read and written in place.
    """

    def __init__(self, learner: "ReBRAC"):
        self.learner, c = learner, learner.config
        self.constants = np.array(
            [c.policy_noise, c.noise_clip, c.critic_bc_coef, c.discount, c.actor_bc_coef, c.tau, c.actor_lr, c.critic_lr]
        )
        self.actor = _network(learner.actor.mlp, learner.flat_actor, learner.flat_target_actor)
        self.critic = _network(learner.critic.mlp, learner.flat_critic, learner.flat_target_critic)
        self.adams = [
            tuple(t.numpy() for t in (a.flat.gradient, *a.moments())) for a in (learner.actor_adam, learner.critic_adam)
        ]
        self.steps = [a.optimiser.state[a.parameter]["step"] for a in (learner.actor_adam, learner.critic_adam)]
        self.team, self.rows, self.work = Team(), 0, (np.empty(0),)

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
            tape(mlps[0]),
            tape(mlps[1], heads),
            (
                space(B, m),
                space(heads, B, 1),
                space(B),
                space(threads, 2, block, W),
                space(threads, 2, block),
                space(threads, 32 * W),
            ),
            (
                space(heads, B, 1),
                space(B, d + m),
                space(threads, block, dtype=torch.int64),
                space(threads, block, d + m),
                space(B, m),
            ),
            space(threads, 5, dtype=torch.float64),
        )
        self.rows = B

    def update(self, batch: Tensor, noise: Tensor, move_actor: bool) -> dict[str, Tensor]:
        """See `ReBRAC.update`."""
        if not batch.is_contiguous():
            raise ValueError("batch: expected contiguous rows, which are overwritten, got a view; pass a copy")
        threads, c = torch.get_num_threads(), self.learner.config
        if len(batch) != self.rows or threads != len(self.work[-1]):
            self._reserve(len(batch), threads)
        for step in self.steps[0 if move_actor else 1 :]:
            step += 1
        steps = np.array([int(step) for step in self.steps])
        self.team.run(
            update,
            threads,
            steps,
            move_actor,
            c.normalize_q,
            self.constants,
            batch.numpy(),
            noise.contiguous().numpy(),
            self.actor,
            self.critic,
            *self.adams,
            *self.work,
        )
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
