"""The same gradient in JAX: jit(value_and_grad) of the imagined return, scanned over H and K or with both loops unrolled.

JAX is optional (`pip install jax`). The networks are reimplemented on weights copied from the torch modules; the world's weights
are arguments, so that a compiled function can be reused for every world of the same size.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from problems import Case, Entry, Gradient, Unavailable

from jacrec.models.dynamics import ChainDynamics
from jacrec.models.networks import MLP, RewardModel, TwinCritic

UNROLLED_CALLS = 100
"""maximum number H·K of unrolled network calls; compiling more takes minutes"""


def scan(case: Case) -> Entry:
    """Nested lax.scan over the horizon and the chain."""
    return _entry(case, unroll=False)


def unrolled(case: Case) -> Entry:
    """Both loops unrolled into one program."""
    calls = case.size.H * case.size.K
    if calls > UNROLLED_CALLS:
        raise Unavailable(f"{calls} unrolled network calls take too long to compile; up to {UNROLLED_CALLS} are")
    return _entry(case, unroll=True)


def _entry(case: Case, *, unroll: bool) -> Entry:
    try:
        import jax
    except ImportError as error:
        raise Unavailable("JAX is not installed: pip install jax") from error
    jax.config.update("jax_enable_x64", True)  # needed for the comparison in float64; float32 arrays stay float32
    if case.state.is_cuda and jax.default_backend() != "gpu":
        raise Unavailable(
            f"JAX has no GPU backend on this machine (it uses {jax.default_backend()}): pip install 'jax[cuda12]'"
        )
    if not isinstance(case.dynamics, ChainDynamics):
        raise Unavailable("written for chains: diffusion, flow and MeanFlow")
    if case.policy.mlp.norms or case.policy.mlp.activation != "relu":
        raise Unavailable("written for ReLU actors without LayerNorm")
    platform = jax.devices("gpu" if case.state.is_cuda else "cpu")[0]
    state, noise = (_array(x, platform) for x in (case.state, case.noise))
    psi, world = _layers(case.policy.mlp, platform), _world(case, platform)
    objective = _objective(case, unroll)
    started = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(objective)).lower(psi, world, state, noise).compile()
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    peak = None if analysis is None else int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
    return Entry(
        lambda: jax.block_until_ready(compiled(psi, world, state, noise)), _convert, peak_bytes=peak, ready_seconds=seconds
    )


def _convert(answer: Any) -> Gradient:
    """(value, [(W (in, out), b)]) -> the policy's gradient by torch's names."""
    gradient = {}
    for i, (W, b) in enumerate(answer[1]):
        gradient[f"mlp.layers.{i}.weight"] = torch.from_numpy(np.array(W)).mT
        gradient[f"mlp.layers.{i}.bias"] = torch.from_numpy(np.array(b))
    return gradient


def _array(x: torch.Tensor, platform: Any) -> Any:
    import jax

    return jax.device_put(x.detach().cpu().numpy(), platform)


def _layers(mlp: MLP, platform: Any, head: int | None = None) -> list:
    """[(W (in, out), b (out,))] of a network, or of one of a stack."""
    pick = (lambda x: x) if head is None else (lambda x: x[head])
    return [(_array(pick(layer.weight).mT.contiguous(), platform), _array(pick(layer.bias), platform)) for layer in mlp.layers]


def _norms(mlp: MLP, platform: Any, head: int) -> list:
    return [(_array(norm.weight[head], platform), _array(norm.bias[head], platform)) for norm in mlp.norms]


def _world(case: Case, platform: Any) -> dict:
    """All weights except ψ, as a tree of arrays."""
    f, reward, critic = case.dynamics, case.world.reward, case.world.critic
    assert isinstance(f, ChainDynamics)
    assert isinstance(reward, RewardModel)
    assert isinstance(critic, TwinCritic)

    def scales(module: Any, names: str) -> dict:
        return {name: _array(getattr(module, name), platform) for name in names.split()}

    steps = {name: torch.tensor(getattr(f, name), dtype=torch.float64) for name in ("c_u", "c_net", "sigma")}
    tables = {name: _array(step.to(case.state), platform) for name, step in steps.items()}
    embedding = f.denoiser.embed(f.time).to(case.state)
    return {
        "denoiser": _layers(f.denoiser.mlp, platform),
        "reward": _layers(reward.mlp, platform),
        "critics": [(_layers(critic.mlp, platform, i), _norms(critic.mlp, platform, i)) for i in range(critic.critics)],
        "chain": {**tables, "embedding": _array(embedding, platform)},
        "f": scales(f, "state_mean state_std out_mean out_std"),
        "r": scales(reward, "state_mean state_std reward_mean reward_std"),
    }


def _objective(case: Case, unroll: bool) -> Callable:
    """(psi, world, state (d,), noise (M, H, *noise_shape)) -> Ĵ."""
    import jax
    import jax.numpy as jnp

    M, H, K = case.size.M, case.size.H, case.size.K
    discount, difference = case.world.discount, case.dynamics.target == "difference"

    def network(layers: list, x: Any, norms: list | None = None) -> Any:
        for i, (W, b) in enumerate(layers[:-1]):
            x = jax.nn.relu(x @ W + b)
            if norms:
                centred = x - x.mean(-1, keepdims=True)
                inverse = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
                x = centred * inverse * norms[i][0] + norms[i][1]
        return x @ layers[-1][0] + layers[-1][1]

    def repeat(body: Callable, start: Any, xs: Any, length: int) -> Any:
        """The final carry of a scan or of the unrolled loop."""
        if not unroll:
            return jax.lax.scan(lambda c, x: (body(c, x), None), start, xs)[0]
        for i in range(length):
            start = body(start, jax.tree.map(lambda x, i=i: x[i], xs))
        return start

    def dynamics(world: dict, s: Any, a: Any, z: Any) -> Any:
        """z (rows of noise, M, d)."""
        f, t = world["f"], world["chain"]
        inputs = jnp.concatenate([(s - f["state_mean"]) / f["state_std"], a], -1)

        def h(u: Any, x: Any) -> Any:
            embedding, c_u, c_net, sigma, z = x
            row = jnp.broadcast_to(embedding, (M, embedding.shape[0]))
            return c_u * u + c_net * network(world["denoiser"], jnp.concatenate([u, inputs, row], -1)) + sigma * z

        drawn = z[:K] if len(z) > K else jnp.zeros((K, *z.shape[1:]), z.dtype)
        down = jax.tree.map(lambda x: x[::-1], (t["embedding"], t["c_u"], t["c_net"], t["sigma"], drawn))
        moved = f["out_mean"] + f["out_std"] * repeat(h, z[-1], down, K)
        return s + moved if difference else moved

    def objective(psi: list, world: dict, state: Any, noise: Any) -> Any:
        r = world["r"]

        def policy(s: Any) -> Any:
            return jnp.tanh(network(psi, s))

        def step(carry: Any, x: Any) -> Any:
            (s, total), (weight, z) = carry, x
            a = policy(s)
            inputs = jnp.concatenate([(s - r["state_mean"]) / r["state_std"], a], -1)
            reward = r["reward_mean"] + r["reward_std"] * network(world["reward"], inputs)[:, 0]
            return dynamics(world, s, a, z), total + weight * reward

        weights = jnp.asarray(discount ** np.arange(H), state.dtype)
        start = jnp.broadcast_to(state, (M, state.shape[0])), jnp.zeros(M, state.dtype)
        s, total = repeat(step, start, (weights, jnp.moveaxis(noise, 0, 2)), H)
        inputs = jnp.concatenate([s, policy(s)], -1)
        critics = jnp.stack([network(layers, inputs, norms)[:, 0] for layers, norms in world["critics"]])
        return (total + discount**H * critics.min(0)).mean()

    return objective
