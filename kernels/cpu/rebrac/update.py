"""One update of ReBRAC as one call of compiled code on every thread.

The rows of the batch are divided among the threads, which compute targets, values and cotangents without waiting for one
another; then the outputs of the weight gradients are divided, then the elements of the parameters. A thread processes its
rows in blocks whose activations stay in its cache.
"""

from jacrec.kernels.cpu.base.host import part
from jacrec.kernels.cpu.base.team import counter_barrier
from jacrec.kernels.cpu.rebrac.flat import adam, update_target
from jacrec.kernels.cpu.rebrac.job import (
    ACTOR_LR,
    ACTOR_STEPS,
    BC_ACTOR,
    BC_CRITIC,
    CLIP,
    CRITIC_LR,
    CRITIC_STEPS,
    DISCOUNT,
    MOVE,
    NOISE_SCALE,
    NORMALIZE,
    TAU,
    net_of,
    tape_of,
    target_of,
    task_of,
)
from jacrec.kernels.cpu.rebrac.passes import address, pull, pull_inputs, record, value, weights

BLOCK = 256
"""rows at a time"""
LOSS, Q, Q_POLICY, SIZE, AWAY = range(5)
"""sums over the rows in a thread's totals: (Q − y)², Q, min Q(s, π(s)), its absolute value, ‖π(s) − a‖²"""


@part
def _next_actions(task, first, rows):
    """The rows' â' in the batch become a'; `penalty` is ‖a' − â'‖²."""
    batch, rule, real = task.batch, task.rule, task.batch.dtype.type
    d, m, stride = task.actor.widths[0], task.actor.widths[-1], batch.shape[1]
    value(target_of(task.actor, 0), address(batch, first * stride + d + m), stride, first, rows, task.workspace, task.action)
    for r in range(first, first + rows):
        penalty = real(0)
        for j in range(m):
            jitter = min(max(task.noise[r, j] * real(rule[NOISE_SCALE]), -real(rule[CLIP])), real(rule[CLIP]))
            a = min(max(task.action[r, j] + jitter, real(-1)), real(1))
            away = a - batch[r, d + m + d + j]
            penalty += away * away
            batch[r, d + m + d + j] = a
        task.penalty[r] = penalty


@part
def _least(q, i):
    """The critic with the smallest value for row i."""
    least = 0
    for head in range(1, len(q)):
        if q[head, i, 0] < q[least, i, 0]:
            least = head
    return least


@part
def _next_values(task):
    """Q̄(s', a') into `q`."""
    stride, x = task.batch.shape[1], task.critic.widths[0]
    for r in range(task.first, task.end, BLOCK):
        for head in range(task.low, task.high):
            rows = min(BLOCK, task.end - r)
            value(
                target_of(task.critic, head), address(task.batch, r * stride + x), stride, r, rows, task.workspace, task.q[head]
            )


@part
def _errors(task, error, first, rows):
    """Values Q(s, a) in `error` become the loss's cotangents."""
    batch, rule, q, real = task.batch, task.rule, task.q, task.batch.dtype.type
    x, total_q, loss = task.critic.widths[0], 0.0, 0.0
    for i in range(first, first + rows):
        least = q[_least(q, i), i, 0] - real(rule[BC_CRITIC]) * task.penalty[i]
        y = batch[i, 2 * x] + real(rule[DISCOUNT]) * batch[i, 2 * x + 1] * least
        e = error[i, 0] - y
        total_q += error[i, 0]
        loss += e * e
        error[i, 0] = e * real(2 / len(batch))
    task.totals[task.thread, Q] += total_q
    task.totals[task.thread, LOSS] += loss


@part
def _pull_critics(task):
    """Values, losses and cotangents of this thread's critics on its rows."""
    stride = task.batch.shape[1]
    for head in range(task.low, task.high):
        net, tape, error = net_of(task.critic, head), tape_of(task.critic, head), task.error[head]
        tape.sums[task.group_rank] = 0
        for r in range(task.first, task.end, BLOCK):
            rows = min(BLOCK, task.end - r)
            record(net, tape, address(task.batch, r * stride), stride, r, rows, task.workspace, True, error)
            _errors(task, error, r, rows)
            pull(net, tape, error, r, rows, task.workspace, tape.sums[task.group_rank])


@part
def _step_critics(task):
    """Gradients and Adam's step for this thread's outputs of its critics."""
    state, rule, stride = task.critic.state, task.rule, task.batch.shape[1]
    for head in range(task.low, task.high):
        net, tape, x = net_of(task.critic, head), tape_of(task.critic, head), address(task.batch, 0)
        weights(net, tape, state.gradient, x, stride, task.error[head], task.workspace, task.group_rank, task.group_size)
        adam(net, state, rule[CRITIC_LR], rule[CRITIC_STEPS], task.group_rank, task.group_size)


@part
def _record_actor(task):
    """π(s) of this thread's rows, and (s, π(s))."""
    d, stride = task.actor.widths[0], task.batch.shape[1]
    net, tape = net_of(task.actor, 0), tape_of(task.actor, 0)
    tape.sums[task.thread] = 0
    for r in range(task.my_first, task.my_end, BLOCK):
        rows = min(BLOCK, task.my_end - r)
        record(net, tape, address(task.batch, r * stride), stride, r, rows, task.workspace, True, task.action)
        for i in range(r, r + rows):
            task.s_a[i, :d] = task.batch[i, :d]
            task.s_a[i, d:] = task.action[i]


@part
def _record_critics(task):
    """Q(s, π(s)) into `q`; the tapes' y is not written."""
    x = task.critic.widths[0]
    for head in range(task.low, task.high):
        net, tape = net_of(task.critic, head), tape_of(task.critic, head)
        for r in range(task.first, task.end, BLOCK):
            rows = min(BLOCK, task.end - r)
            record(net, tape, address(task.s_a, r * x), x, r, rows, task.workspace, False, task.q[head])


@part
def _slopes(task):
    """∂ min_i Q_i(s, π(s)) / ∂π into `slope`: each critic's on the rows where it is the smallest."""
    q, d, total_q, size = task.q, task.actor.widths[0], 0.0, 0.0
    for head in range(task.low, task.high):
        net, tape = net_of(task.critic, head), tape_of(task.critic, head)
        for r in range(task.first, task.end, BLOCK):
            some = 0
            for i in range(r, min(r + BLOCK, task.end)):
                if _least(q, i) == head:
                    task.index[some] = i
                    some += 1
                    total_q += q[head, i, 0]
                    size += abs(q[head, i, 0])
            if some == 0:
                continue
            pull_inputs(net, tape, task.index, some, task.workspace, task.x_bar)
            for i in range(some):
                task.slope[task.index[i]] = task.x_bar[i, d:]
    task.totals[task.thread, Q_POLICY], task.totals[task.thread, SIZE] = total_q, size


@part
def _pull_actor(task):
    """Cotangents of the actor on this thread's rows; `slope` becomes that of the last layer's pre-activation."""
    batch, rule, action, real = task.batch, task.rule, task.action, task.batch.dtype.type
    d, m, B, away_2 = task.actor.widths[0], task.actor.widths[-1], len(task.batch), 0.0
    net, tape = net_of(task.actor, 0), tape_of(task.actor, 0)
    size = 0.0
    for t in range(task.threads):
        size += task.totals[t, SIZE]
    scale = B / size if rule[NORMALIZE] else 1.0
    for r in range(task.my_first, task.my_end, BLOCK):
        rows = min(BLOCK, task.my_end - r)
        for i in range(r, r + rows):
            for j in range(m):
                away = action[i, j] - batch[i, d + j]
                away_2 += away * away
                bar = away * real(2 * rule[BC_ACTOR] / B) - real(scale / B) * task.slope[i, j]
                task.slope[i, j] = bar * (1 - action[i, j] * action[i, j])
        pull(net, tape, task.slope, r, rows, task.workspace, tape.sums[task.thread])
    task.totals[task.thread, AWAY] = away_2


@part
def _step_actor(task):
    """The actor's gradients, its target's step and its own, for this thread's outputs."""
    net, tape, state, rule = net_of(task.actor, 0), tape_of(task.actor, 0), task.actor.state, task.rule
    x, stride, thread, threads = address(task.batch, 0), task.batch.shape[1], task.thread, task.threads
    weights(net, tape, state.gradient, x, stride, task.slope, task.workspace, thread, threads)
    update_target(net, state, rule[TAU], thread, threads)  # before the actor moves, as the reference does
    adam(net, state, rule[ACTOR_LR], rule[ACTOR_STEPS], thread, threads)


@part
def rebrac_update(like, job_address):
    """One thread's part of an update."""
    task = task_of(like, job_address)
    counter, threads = task.counter, task.threads
    task.totals[task.thread] = 0
    for r in range(task.my_first, task.my_end, BLOCK):
        _next_actions(task, r, min(BLOCK, task.my_end - r))
    counter_barrier(counter, threads, 1)
    _next_values(task)
    counter_barrier(counter, threads, 2)
    _pull_critics(task)
    if task.group_size > 1:
        counter_barrier(counter, threads, 3)
    _step_critics(task)
    if not task.rule[MOVE]:
        return
    met = 3 if task.group_size > 1 else 2
    _record_actor(task)
    counter_barrier(counter, threads, met + 1)
    _record_critics(task)
    counter_barrier(counter, threads, met + 2)
    _slopes(task)
    counter_barrier(counter, threads, met + 3)
    _pull_actor(task)
    counter_barrier(counter, threads, met + 4)
    _step_actor(task)
    for head in range(task.low, task.high):
        update_target(net_of(task.critic, head), task.critic.state, task.rule[TAU], task.group_rank, task.group_size)
