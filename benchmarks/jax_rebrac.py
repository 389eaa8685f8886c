"""ReBRAC in JAX as a contestant: the reference's updates, jitted, in a `lax.scan`.

The scan runs over pairs of updates, of which the first updates the actor (policy_freq = 2), so that the compiled loop has no
branch. Batches and noise are drawn beforehand, so random numbers are not included in JAX's time.

As a script, this is the process timed by `training_speed.py`: JAX chooses its number of threads from the available processors,
so every thread count needs its own process. For each line of input it prints one line of JSON with the milliseconds per update
of one run of the scan.

    python benchmarks/jax_rebrac.py --batch 256 --threads 1
"""

import argparse
import json
import os
import sys
import time
from typing import Any, NamedTuple

import numpy as np


class Learner(NamedTuple):
    """The state of training; if the critics are stacked, the leading axis of `critics` leaves is the critic."""

    actor: Any
    critics: Any
    target_actor: Any
    target_critics: Any
    actor_adam: tuple
    critic_adam: tuple


def make_scan(config: Any, form: str = "heads"):
    """jit of (learner, rows, index (pairs, 2, B), noise (pairs, 2, B, m)) -> learner and the critics' losses (pairs, 2).

    Parameters are lists of layers (W (in, out), b, gain, offset), the last two None if a layer is not normalised. With
    `form` = "heads", the critics are a list of two networks; with "vmap", as in the reference, one network of stacked leaves
    under `vmap`.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    c = config

    def network(layers, x):
        for W, b, gain, offset in layers[:-1]:
            x = jax.nn.relu(x @ W + b)
            if gain is not None:
                mean = x.mean(-1, keepdims=True)
                variance = ((x - mean) ** 2).mean(-1, keepdims=True)
                x = (x - mean) * lax.rsqrt(variance + 1e-6) * gain + offset
        W, b, _, _ = layers[-1]
        return x @ W + b

    def policy(actor, state):
        return jnp.tanh(network(actor, state))

    def values(critics, state, action):
        x = jnp.concatenate([state, action], -1)
        if form == "vmap":
            return jax.vmap(network, (0, None))(critics, x)[..., 0]
        return jnp.stack([network(critic, x)[:, 0] for critic in critics])

    def adam(gradient, state, parameters, lr):
        step, first, second = state
        step = step + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate, root = lr / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
        moved = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), parameters, first, second)
        return moved, (step, first, second)

    def towards(target, online):
        return jax.tree.map(lambda t, p: (1 - c.tau) * t + c.tau * p, target, online)

    def critic_update(learner, s, a, s2, a2, r, alive, n):
        jitter = jnp.clip(n * c.policy_noise, -c.noise_clip, c.noise_clip)
        action = jnp.clip(policy(learner.target_actor, s2) + jitter, -1, 1)
        penalty = ((action - a2) ** 2).sum(-1)
        next_q = values(learner.target_critics, s2, action).min(0) - c.critic_bc_coef * penalty
        y = r + c.discount * alive * next_q
        loss, gradient = jax.value_and_grad(lambda p: ((values(p, s, a) - y) ** 2).mean(-1).sum())(learner.critics)
        critics, state = adam(gradient, learner.critic_adam, learner.critics, c.critic_lr)
        return learner._replace(critics=critics, critic_adam=state), loss

    def actor_update(learner, s, a):
        def loss(actor):
            action = policy(actor, s)
            q = values(learner.critics, s, action).min(0)
            scale = 1 / lax.stop_gradient(jnp.abs(q).mean()) if c.normalize_q else 1.0
            return (c.actor_bc_coef * ((action - a) ** 2).sum(-1) - scale * q).mean()

        gradient = jax.grad(loss)(learner.actor)
        actor, state = adam(gradient, learner.actor_adam, learner.actor, c.actor_lr)
        return learner._replace(
            actor=actor,
            actor_adam=state,
            target_actor=towards(learner.target_actor, learner.actor),  # with the actor before its update
            target_critics=towards(learner.target_critics, learner.critics),
        )

    def run(learner, rows, index, noise):
        m = noise.shape[-1]
        d = (rows.shape[-1] - 2 - 2 * m) // 2

        def pair(learner, drawn):
            (i, n), losses = drawn, []
            for k in range(2):
                s, a, s2, a2, r, alive = jnp.split(rows[i[k]], np.cumsum([d, m, d, m, 1]), -1)
                learner, loss = critic_update(learner, s, a, s2, a2, r[:, 0], alive[:, 0], n[k])
                losses.append(loss)
                if k == 0:
                    learner = actor_update(learner, s, a)
            return learner, jnp.stack(losses)

        return lax.scan(pair, learner, (index, noise))

    return jax.jit(run, donate_argnums=0)


def from_torch(learner: Any, form: str = "heads") -> Learner:
    """The initial state of a `jacrec.training.stages.rebrac.ReBRAC` as JAX arrays of the same dtype."""
    import jax
    import jax.numpy as jnp

    def array(tensor):
        return jnp.array(tensor.detach().numpy())

    def network(mlp, pick):
        norms = [*mlp.norms, None] if mlp.norms else [None] * len(mlp.layers)
        return [
            (
                array(pick(layer.weight).mT),
                array(pick(layer.bias)),
                *((None, None) if norm is None else (array(pick(norm.weight)), array(pick(norm.bias)))),
            )
            for layer, norm in zip(mlp.layers, norms, strict=True)
        ]

    def both(actor, critic):
        if form == "vmap":
            return network(actor.mlp, lambda t: t), network(critic.mlp, lambda t: t)
        heads = range(critic.critics)
        return network(actor.mlp, lambda t: t), [network(critic.mlp, lambda t, head=head: t[head]) for head in heads]

    def adam(parameters):
        step = jnp.zeros((), jax.tree.leaves(parameters)[0].dtype)
        return step, jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters)

    actor, critics = both(learner.actor, learner.critic)
    target_actor, target_critics = both(learner.flat_target_actor.module, learner.flat_target_critic.module)
    return Learner(actor, critics, target_actor, target_critics, adam(actor), adam(critics))


def drawn(stage: Any, pairs: int) -> tuple[Any, Any, Any]:
    """The rows of the data, and index (pairs, 2, B) and noise (pairs, 2, B, m) of the stage's first updates."""
    import jax.numpy as jnp

    index, noise = zip(*(stage.stream.at(update) for update in range(2 * pairs)), strict=True)
    index, noise = np.stack(index), np.stack(noise)
    return (
        jnp.asarray(stage.rows.numpy()),
        jnp.asarray(index.reshape(pairs, 2, -1)),
        jnp.asarray(noise.reshape(pairs, 2, *noise.shape[1:])),
    )


def disagreement(stage: Any, form: str = "heads", pairs: int = 10) -> float:
    """The largest difference of any weight of networks and target networks after `2 * pairs` updates of both.

    `stage` is a fresh `ReBRACStage`; float64 requires `jax_enable_x64` before the first JAX array.
    """
    import jax

    rows, index, noise = drawn(stage, pairs)
    theirs, _ = make_scan(stage.config, form)(from_torch(stage.learner, form), rows, index, noise)
    for update in range(2 * pairs):
        stage.step(update)
    ours = from_torch(stage.learner, form)
    gaps = jax.tree.map(lambda a, b: float(abs(a - b).max()), ours[:4], theirs[:4])
    return max(jax.tree.leaves(gaps))


def main() -> None:
    """Main function of the timed process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs=2, default=[11, 3])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, default=8, help="updates per scan, an even number")
    parser.add_argument("--form", choices=("heads", "vmap"), default="heads")
    parser.add_argument("--check", action="store_true", help="only compare with the hand-written updates in float64")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # before JAX counts the processors

    import jax
    import torch
    from training_speed import noise_data

    from jacrec.training.config import ReBRACConfig
    from jacrec.training.stages.rebrac import ReBRACStage

    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", options.check)
    data, hidden = noise_data(*options.dims), (options.width,) * 3
    if options.check:
        config = ReBRACConfig(batch_size=32, hidden=hidden)
        print(json.dumps({"difference": disagreement(ReBRACStage(data, config, 0, dtype=torch.float64), options.form)}))
        return
    stage = ReBRACStage(data, ReBRACConfig(batch_size=options.batch, hidden=hidden), seed=0)
    pairs = max(1, options.updates // 2)
    rows, index, noise = drawn(stage, pairs)
    run, learner = make_scan(stage.config, options.form), from_torch(stage.learner, options.form)
    for _ in range(2):
        learner, losses = jax.block_until_ready(run(learner, rows, index, noise))
    print(json.dumps({"jax": jax.__version__, "updates": 2 * pairs}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        learner, losses = jax.block_until_ready(run(learner, rows, index, noise))
        elapsed = 1e3 * (time.perf_counter() - started)
        if not np.isfinite(losses).all():
            raise SystemExit("JAX: expected finite losses, got non-finite ones")
        print(json.dumps({"ms": elapsed / (2 * pairs)}), flush=True)


if __name__ == "__main__":
    main()
