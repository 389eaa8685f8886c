"""The physical lower limit of one gradient: counts of multiply-adds, bytes and sequential steps, and measured rates.

The counts are those of the adjoint form, which needs the fewest rows: one value and one cotangent per particle. P(L) is the
number of weights of a network L, w its width, e the width of the step embedding, B = N·M particles, and R_j the rows at step
j: N at j = 0, where all particles coincide, and N·M afterwards.

    denoiser, first layer's (s, a) part   2 H B w (d+m)         values and cotangents, once per transition
    denoiser, the rest                    2 H K B (w d + P(hidden) + d w)
    level table                           K w e                 once per gradient
    reward                                2 P(reward) Σ_{j<H} R_j
    critic                                2 P(both critics) R_H
    ensemble                              only the network drawn for a row
    multi-step model                      w d + 2 H B (w m + P(later layers)): one s̃_0, actions by a running sum
    policy, values                        P(policy) Σ_{j≤H} R_j
    policy, Π_sᵀ w                        P(policy) Σ_{1≤j≤H} R_j
    policy, w Π_ψ                         (2 P(policy) − w d) Σ_j R_j   cotangents down to the first layer, outer products

A fused form saves a little of that (the policy's cotangents are shared by Π_s and Π_ψ); jacrec's plain adjoint spends
P(policy) Σ_j R_j more on evaluating the policy again for the contraction. `count` returns both, and a test compares it with
torch's operation counter.

The floor is the largest of three limits:

* arithmetic: 2 multiply-adds divided by the rate of multiply-adds in the same precision (CPU: the peak of all threads
  together, by the loops of benchmarks/rates.py; GPU: matrix products);
* bytes: every layer call reads its weights once, at the rate at which all threads together read as many bytes as the
  denoiser's weights (CPU: from L1 or L2, wherever so many bytes lie; GPU: from L2);
* latency: sequentially dependent layers, 2·H·K·layers, plus those of policy and critic, on a GPU one matrix-vector product of
  the width per layer, as a kernel in a captured graph. A CPU has no such limit beside its bytes: its threads may share a layer.

The rate of MKL's matrix products on a CPU is no limit but a peer: on some processors it is less than half the peak.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from harness import synchronise
from problems import Case
from rates import speeds as cpu_speeds

from jacrec.models.dynamics import ChainDynamics, MultiStepDynamics
from jacrec.models.networks import MLP


@dataclass(frozen=True)
class Count:
    """The minimum work of one gradient."""

    multiply_adds: int
    """of the form with the fewest rows"""
    repeated: int
    """additional multiply-adds of jacrec's plain adjoint form"""
    weight_bytes: int
    """bytes read by all layer calls, if every call reads its weights once"""
    dependent_calls: int
    """sequentially dependent layer calls"""
    dependent_bytes: int
    """bytes of the weights read by them"""


@dataclass(frozen=True)
class Rates:
    """Rates of the machine, measured in the run that uses them."""

    flops: float
    """operations per second: fused multiply-adds of all threads together on a CPU, matrix products of 8192³ on a GPU"""
    bytes: float
    """bytes per second read by all threads together"""
    thread_bytes: float
    """bytes per second read by one thread; on a GPU equal to `bytes`"""
    dependent_call: float
    """seconds per (w, w) matrix-vector product in a chain of dependent kernels; 0 on a CPU"""
    products: float = 0.0
    """operations per second of the library's matrix products, a peer: 256³ by torch on a CPU, `flops` on a GPU"""


@dataclass(frozen=True)
class Floor:
    """The three limits in milliseconds."""

    arithmetic: float
    bytes: float
    latency: float

    @property
    def ms(self) -> float:
        return max(self.arithmetic, self.bytes, self.latency)

    def record(self) -> dict:
        """For the results file."""
        return {**{k: round(v, 5) for k, v in asdict(self).items()}, "ms": round(self.ms, 5)}


def weights(mlp: MLP) -> int:
    """P: the number of weights of all layers (of all networks of a stack), without biases."""
    return sum(layer.weight.numel() for layer in mlp.layers)


def count(case: Case) -> Count:
    """The counts of the module's docstring, for N = 1."""
    size, mlp = case.size, case.network
    B, H, K, d = size.M, size.H, size.K, size.d
    rows = [1] + [B] * H  # R_j
    denoiser, first = weights(mlp) // (mlp.stack or 1), mlp.layers[0].weight
    policy, policy_first = weights(case.policy.mlp), case.policy.mlp.layers[0].weight.numel()
    reward, critic = (weights(part.mlp) for part in (case.world.reward, case.world.critic))  # pyright: ignore
    w = first.shape[-2]
    inputs, latent = w * (d + size.m), w * d * isinstance(case.dynamics, ChainDynamics)
    embedding = w * mlp.in_dim - inputs - latent
    recurrent = denoiser - inputs - embedding  # W_u and the other layers
    counted = 2 * H * B * (inputs + K * recurrent) + K * embedding
    if isinstance(case.dynamics, MultiStepDynamics):  # the embedding consists of the prefix of actions and a table of the steps
        counted = w * d * (H > 0) + 2 * H * B * (w * size.m + recurrent)
    counted += 2 * reward * sum(rows[:H]) + 2 * critic * rows[H]
    counted += policy * sum(rows) + policy * sum(rows[1:]) + (2 * policy - policy_first) * sum(rows)
    layers = len(mlp.layers)
    policy_layers, critic_layers = len(case.policy.mlp.layers), len(case.world.critic.mlp.layers)  # pyright: ignore
    # values: H+1 policies, H chains, one critic; cotangents: the same without the policy at step 0
    dependent = 2 * H * K * layers + (2 * H + 1) * policy_layers + 2 * critic_layers
    chain = 2 * H * (inputs + K * recurrent)
    read = chain + K * embedding + 2 * H * reward + 2 * critic + (2 * H + 3) * policy
    dependent_read = chain + (2 * H + 1) * policy + critic  # its two networks are independent
    each = first.element_size()
    return Count(counted, policy * sum(rows), read * each, dependent, dependent_read * each)


def floor(counted: Count, rates: Rates) -> Floor:
    """The limits for a count at the machine's rates."""
    return Floor(
        arithmetic=2e3 * counted.multiply_adds / rates.flops,
        bytes=1e3 * counted.weight_bytes / rates.bytes,
        latency=1e3 * max(counted.dependent_calls * rates.dependent_call, counted.dependent_bytes / rates.bytes),
    )


def share(floor_ms: float, ms: float | None) -> float | None:
    """The share of a physical limit; None without a time, and where it is shorter: the rates were then measured too low."""
    return floor_ms / ms if ms and floor_ms <= ms else None


def percent(part: float | None) -> str:
    """A share as it is printed."""
    return "–" if part is None else f"{part:.0%}"


def is_limit(row: dict) -> bool:
    """Whether a recorded row's floor is a limit. Before MKL's rate was recorded as a peer, it was the floor's rate."""
    return "products" in row.get("rates", {})


CLOCK, L2_BYTES, SHARED_BYTES = 1.755e9, 64, 128
"""H100/H200, datasheet and microbenchmarks of others: clock (Hz), bytes that one multiprocessor reads per clock from L2 and
from shared memory"""
EXCHANGE = (1e-6, 1.5e-6)
"""seconds for activations of a layer to go through L2 to the other blocks of a tile, with a barrier among them. An estimate"""
OVERLAP = (3.0, 4.8)
"""how many times the reading of its weights a layer takes in one block: three products for tf32x3, barriers, and little in
flight. An estimate"""


def launch_estimates(case: Case) -> dict[str, list[float]] | None:
    """Milliseconds, from and to, of a rollout in one launch on an H100 or H200, by how it is built; None for other dynamics.

    Estimates, not measurements; the order of magnitude that each design can reach. In brackets hopper's, H 3, K 10, width 256:
    5.4 M weights, 22 MB (6.5 M with a reward model of 512 units, for a fifth more).

    * "one block, reading": a tile of rows is one block, and every weight goes through its multiprocessor once per call: the
      least time, flat up to as many tiles as there are multiprocessors (0.19 ms).
    * "one block": the same with products and barriers between the reads (0.6 to 0.9 ms). This is what is built.
    * "spread over 8 to 16 blocks": the columns of each layer belong to 8 to 16 blocks, which keep the denoiser's weights
      (547 KB) in their shared memory for all H·K calls, so that a layer costs the exchange of activations through L2; policy,
      reward and critic are read from L2 (0.2 to 0.3 ms). Not built: a second variant to be tuned against the first.
    """
    f = case.dynamics
    if not isinstance(f, ChainDynamics):
        return None
    size = case.size
    denoiser, policy, reward, critic = (
        mlp
        for mlp in (f.denoiser.mlp, case.policy.mlp, case.world.reward.mlp, case.world.critic.mlp)  # pyright: ignore
    )
    each = denoiser.layers[0].weight.element_size()
    calls = size.H * size.K
    others = (size.H + 1) * weights(policy) + size.H * weights(reward) + weights(critic)
    embedding = denoiser.layers[0].weight.shape[0] * (denoiser.in_dim - 2 * size.d - size.m)  # a table, once per gradient
    recurrent = weights(denoiser) - embedding
    layers = calls * len(denoiser.layers) + (size.H + 1) * len(policy.layers) + size.H * len(reward.layers)
    layers += critic.stack * len(critic.layers) if critic.stack else len(critic.layers)
    read = 1e3 * each * (calls * recurrent + others) / (L2_BYTES * CLOCK)
    spread = []
    for blocks, exchange, overlap in zip((16, 8), EXCHANGE, OVERLAP, strict=True):
        own = each * (calls * recurrent / SHARED_BYTES + others / L2_BYTES) / (blocks * CLOCK)
        spread.append(1e3 * (layers * exchange + overlap * own))
    found = {"one block, reading": [read, read], "one block": [x * read for x in OVERLAP], "spread over 8 to 16 blocks": spread}
    return {name: [round(x, 3) for x in ms] for name, ms in found.items()}


@torch.no_grad()
def measure_rates(width: int, dtype: torch.dtype, device: str) -> Rates:
    """Measure the machine's rates with torch's number of threads; takes half a second."""
    on_gpu = device == "cuda"
    n = 8192 if on_gpu else 256  # one 256³ product would not fill a GPU
    x, y = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(x)

    def multiply() -> float:
        return 2 * n**3 / best(lambda: torch.mm(x, y, out=product), device)

    products = multiply()
    if on_gpu:
        numbers = torch.randn(2**23, dtype=dtype, device=device)
        read = numbers.numel() * numbers.element_size() / best(numbers.sum, device)
        return Rates(products, read, read, dependent_kernel(width, dtype), products)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        products = max(products, threads * multiply())  # threads that need not wait for one another
    finally:
        torch.set_num_threads(threads)
    together = cpu_speeds(3 * width * width, dtype, threads)
    one = together if threads == 1 else cpu_speeds(3 * width * width, dtype, 1)
    return Rates(max(together.flops, one.flops), max(together.bytes, one.bytes), one.bytes, 0.0, products)


def dependent_kernel(width: int, dtype: torch.dtype) -> float:
    """Seconds per matrix-vector product in a captured graph of sixty dependent ones."""
    layers = [torch.randn(width, width, dtype=dtype, device="cuda") / width**0.5 for _ in range(3)]
    vectors = [torch.randn(width, dtype=dtype, device="cuda") for _ in range(2)]

    def sequence() -> None:
        for i in range(60):
            torch.mv(layers[i % 3], vectors[i % 2], out=vectors[(i + 1) % 2])

    sequence()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sequence()
    return best(graph.replay, "cuda") / 60


def best(call: Callable[[], object], device: str, seconds: float = 0.08) -> float:
    """Minimum time of a call over many calls within `seconds`, to exclude other work of the machine."""
    call()
    least, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(5):
            call()
        synchronise(device)
        least = min(least, (time.perf_counter() - started) / 5)
    return least
