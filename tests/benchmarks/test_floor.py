"""Physical limits and phases of a gradient."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jacrec import Adjoint, MultiStep, policy_gradient


class FlopCounter(TorchDispatchMode):
    """Counts like torch's FlopCounterMode, without its global module hooks: modules with hooks are left to autograd."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize(
    "size",
    [
        ("hopper", 1, 1, 1, 8),
        ("halfcheetah", 4, 2, 3, 16),
        ("antmaze", 5, 3, 2, 24),
        ("hopper", 3, 2, 2, 16, "ddim"),
        ("hopper", 3, 2, 3, 16, "flow"),
        ("hopper", 3, 2, 1, 16, "meanflow"),
        ("hopper", 3, 2, 1, 16, "deterministic"),
    ],
)
def test_floor_counts_equal_torchs(load, size):
    floor, problems = load("floor"), load("problems")
    case = problems.make(problems.Size(*size))
    counted = floor.count(case)
    policy_gradient(*case.arguments, method=Adjoint())  # the first one also tries every part
    with FlopCounter() as counter:
        policy_gradient(*case.arguments, method=Adjoint())
    assert counter.total == 2 * (counted.multiply_adds + counted.repeated)
    with FlopCounter() as counter:
        load("peers").CONTESTANTS["torch autograd"].prepare(case).gradient()
    assert counter.total >= 2 * counted.multiply_adds


@pytest.mark.parametrize("model", ["ensemble", "multistep"])
@pytest.mark.parametrize(("M", "H"), [(1, 1), (8, 2), (5, 3)])
def test_floor_is_a_lower_bound_for_ensemble_and_multistep(load, model, M, H):
    """Ensembles pad their rows to equal groups, multi-step models compute their first layer in every sweep."""
    floor, problems = load("floor"), load("problems")
    case = problems.make(problems.Size("hopper", M, H, 1, 16, model))
    counted = floor.count(case)
    method = Adjoint() if model == "ensemble" else MultiStep()
    policy_gradient(*case.arguments, method=method)  # the first one also tries every part
    with FlopCounter() as counter:
        policy_gradient(*case.arguments, method=method)
    least = 2 * (counted.multiply_adds + counted.repeated)
    assert least <= counter.total <= (2 if model == "ensemble" else 1.1) * least
    if (M, H) == (1, 1) and model == "multistep":
        assert counter.total == least


def test_floor_is_the_largest_limit(load):
    floor = load("floor")
    counted = floor.Count(multiply_adds=10**9, repeated=0, weight_bytes=10**8, dependent_calls=100, dependent_bytes=10**7)
    limits = floor.floor(counted, floor.Rates(flops=1e12, bytes=1e11, thread_bytes=1e10, dependent_call=2e-6))
    # the threads of a team share a layer: dependent layers are read at the rate of all of them
    assert (limits.arithmetic, limits.bytes, limits.latency) == pytest.approx((2.0, 1.0, 0.2))
    assert limits.ms == limits.arithmetic
    slow_calls = floor.floor(counted, floor.Rates(1e12, 1e11, 1e10, dependent_call=5e-5))
    assert slow_calls.ms == slow_calls.latency == pytest.approx(5.0)


def test_rates_are_measured(load):
    rates = load("floor").measure_rates(32, torch.float32, "cpu")
    assert 1e8 < rates.products < rates.flops < 1e14
    assert 1e8 < rates.thread_bytes <= rates.bytes < 1e13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loops_that_set_the_peak_leave_nothing_out(load, dtype):
    """A compiler that computed a part of the sums would raise the peak."""
    rates = load("rates")
    multiply_add, read = rates.loops(dtype)
    lanes = rates.VECTOR_BYTES // dtype.itemsize
    assert multiply_add(100, 1.0, 0.5) == lanes * sum(i + 50 for i in range(rates.CHAINS))
    numbers = torch.arange(4.0 * rates.CHAINS * lanes, dtype=dtype)
    assert read(3, numbers.data_ptr(), len(numbers)) == 3 * numbers.sum()


def test_no_share_is_above_one(load):
    floor, row = load("floor"), {"floor": {"ms": 2.0}, "ms": {"auto": {"median": 1.9}, "adjoint": {"median": 4.0}}}
    assert (floor.share(2.0, 4.0), floor.share(2.0, 2.0)) == (0.5, 1.0)
    assert floor.share(2.0, 1.9) is floor.share(2.0, None) is None
    assert [floor.percent(x) for x in (0.456, 1.0, None)] == ["46%", "100%", "–"]
    ratio = load("goals").of_the_floor(0.1, bool).ratio
    assert (ratio(row, "auto"), ratio(row, "adjoint"), ratio(row, "forward")) == (None, 0.5, None)


@pytest.mark.parametrize("name", ["forward", "adjoint", "adjoint recomputed"])
def test_phases_cover_the_gradient(load, name):
    phases, peers, problems = load("phases"), load("peers"), load("problems")
    case = problems.make(problems.Size("hopper", 2, 2, 2, 16))
    gradient = peers.CONTESTANTS[name].prepare(case).gradient
    before = gradient().gradient
    parts = phases.phases(gradient, "cpu")
    assert set(parts) == set(phases.PHASES)
    assert all(ms > 0 for phase, ms in parts.items() if phase != "Jacobians")
    assert parts["Jacobians"] >= 0
    assert all(torch.equal(before[k], g) for k, g in gradient().gradient.items())
    assert phases.phases(peers.CONTESTANTS["torch autograd"].prepare(case).gradient, "cpu") == {}


def test_estimates_of_one_launch(load):
    floor, problems = load("floor"), load("problems")
    found = floor.launch_estimates(problems.make(problems.Size("hopper", 1, 3, 10, 256)))
    weights = 30 * (256 * 25 + 2 * 256**2 + 256 * 11) + 4 * 134656 + 3 * 134912 + 269824
    reading = 1e3 * 4 * weights / (64 * 1.755e9)
    assert found["one block, reading"] == [round(reading, 3)] * 2
    assert found["one block"] == [round(3 * reading, 3), round(4.8 * reading, 3)]
    least, most = found["spread over 8 to 16 blocks"]
    layers = 30 * 4 + 4 * 4 + 3 * 4 + 2 * 4
    assert layers * 1e-3 < least < most < 2 * layers * 1.5e-3
    more = floor.launch_estimates(problems.make(problems.Size("hopper", 100, 3, 10, 256)))
    assert more == found  # flat in the number of particles, up to a wave of tiles
    assert floor.launch_estimates(problems.make(problems.Size("hopper", 1, 3, 1, 16, "deterministic"))) is None
