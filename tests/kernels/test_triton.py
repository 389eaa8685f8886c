"""The reverse chain in Triton against its plain twins: interpreted where there is no GPU, compiled where there is one."""

import itertools
import statistics
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from triton.runtime.errors import OutOfResources

from jacrec import DeterministicDynamics, DiffusionDynamics
from jacrec.engine.jacobians import chain as plain
from jacrec.kernels import chain as fused
from jacrec.kernels import launch
from jacrec.kernels.activation import activate
from jacrec.kernels.failures import KernelBuildError
from jacrec.kernels.rows import Net
from jacrec.kernels.served import unsupported_reason
from jacrec.models.activations import ACTIVATIONS
from tests.oracles import relative_error
from tests.strategies import shake
from tests.triton_cases import COMPILED, DEVICE, few


@st.composite
def tiles(draw):
    """The default, or small tiles that cut columns, inner products, particles and tangents."""
    if draw(st.integers(0, 2)) == 0:
        return None
    columns = draw(st.sampled_from([16, 32]))
    split = draw(st.sampled_from([None, 2, 4, 16]))
    return launch.Tile(rows=16, columns=columns, inner=16, warps=4, stages=2, per_particle=split)


@st.composite
def chains(draw):
    """(dynamics' dimensions and options, B, T, tile, seed): every structure, ragged sizes."""
    norm = draw(st.booleans())
    widths = st.sampled_from([4, 7, 16, 33])
    width, depth, equal = draw(widths), draw(st.integers(1, 3)), draw(st.booleans())
    prediction = draw(st.sampled_from(["epsilon", "x0"]))
    sampler = draw(st.sampled_from(["ddpm", "ddim"]))
    steps = draw(st.integers(1, 3))
    options = dict(
        hidden=tuple(width if equal else draw(widths) for _ in range(depth)),
        steps=steps,
        prediction=prediction,
        sampler=sampler,
        eta=draw(st.sampled_from([0.0, 0.5])) if sampler == "ddim" else 0.0,
        layer_norm=norm,
        levels=draw(st.none() | st.sets(st.integers(1, steps), min_size=1).map(sorted)),
        target=draw(st.sampled_from(["difference", "state"])),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        residual=draw(st.booleans()),
        embedding_dim=2,
    )
    d, m = draw(st.sampled_from([1, 3, 11, 17])), draw(st.sampled_from([1, 3, 6]))
    B, T = draw(st.sampled_from([1, 3, 18])), draw(st.sampled_from([0, 1, 3, 7, 16]))
    return (d, m, options), B, T, draw(tiles()), draw(st.integers(0, 2**31 - 1))


def build(dimensions, B, T, seed, dtype=torch.float64):
    """Dynamics, (state, action, noise), (ds, da), cotangent."""
    d, m, options = dimensions
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dynamics = DiffusionDynamics(d, m, **options).double()
        shake(dynamics)
    dynamics.requires_grad_(False)
    shapes = (B, d), (B, m), (B, dynamics.diffusion_steps + 1, d), (B, T, d), (B, T, m), (B, d)
    s, a, z, ds, da, lam = (torch.randn(*x, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for x in shapes)
    return dynamics.to(DEVICE, dtype), (s, a, z), (ds, da), lam


def forward(module, dynamics, inputs, directions, **options):
    """chain_forward's answer by name."""
    return dict(zip(("next", "tangents"), module.chain_forward(dynamics, *inputs, *directions, **options), strict=True))


def transposed(module, dynamics, inputs, lam, recompute, tile=None, **options):
    """chain_record's and chain_adjoint's answers by name."""
    cut = {"tile": tile} if tile else {}
    next_state, tape = module.chain_record(dynamics, *inputs, recompute=recompute, **cut, **options)
    v_s, v_a = module.chain_adjoint(dynamics, tape, lam, **cut)
    return {"next": next_state, "v_s": v_s, "v_a": v_a}


def knowable(compute, dimensions, B, T, seed):
    """The plain twin's float64 answer, if its float32 answer shows that 1e-12 can be asked for."""
    exact = compute(*build(dimensions, B, T, seed))
    single = compute(*build(dimensions, B, T, seed, torch.float32))
    assume(relative_error(single, exact) < 5e-6)
    return exact


@few(20, 10)
@given(chains())
def test_chain_forward_is_its_plain_twin(case):
    dimensions, B, T, tile, seed = case
    exact = knowable(lambda f, x, v, _: forward(plain, f, x, v), dimensions, B, T, seed)
    f, x, v, _ = build(dimensions, B, T, seed)
    assert relative_error(forward(fused, f, x, v, tile=tile), exact) < 1e-12


@few(14, 6)
@given(chains(), st.booleans())
def test_chain_adjoint_is_its_plain_twin(case, recompute):
    dimensions, B, T, tile, seed = case
    exact = knowable(lambda f, x, _, lam: transposed(plain, f, x, lam, False), dimensions, B, T, seed)
    f, x, _, lam = build(dimensions, B, T, seed)
    tile = None if tile is None else launch.Tile(16, tile.columns, 16, 4, 2)
    assert relative_error(transposed(fused, f, x, lam, recompute, tile), exact) < 1e-12


def test_programs_that_take_several_tiles_in_turn():
    dimensions = (11, 3, dict(hidden=(20, 20), steps=2, layer_norm=True, residual=True, activation="silu"))
    f, x, v, lam = build(dimensions, 40, 3, 0)
    tile = launch.Tile(16, 16, 16, 4, 2)
    with mock.patch.object(launch, "multiprocessors", return_value=1):
        for T, rounds in ((3, 10), (0, 3)):  # ten and three tiles, one program
            assert launch.plan(tile, 40, T, 20, "ieee", torch.device("cpu")).rounds == rounds
        assert relative_error(forward(fused, f, x, v, tile=tile), forward(plain, f, x, v)) < 1e-12
        for recompute in (False, True):
            got = transposed(fused, f, x, lam, recompute, tile)
            assert relative_error(got, transposed(plain, f, x, lam, False)) < 1e-12


@pytest.mark.parametrize("per_particle", [2, 4, 16])
def test_tangents_spread_over_programs(per_particle):
    f, x, v, _ = build((3, 2, dict(hidden=(7,), steps=2, activation="tanh")), 9, 7, 0)
    tile = launch.Tile(16, 16, 16, 4, 2, per_particle)
    assert relative_error(forward(fused, f, x, v, tile=tile), forward(plain, f, x, v)) < 1e-12


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
def test_float32_errors_at_most_twice_plain_torchs(precision):
    ratios = {"forward": [], "transposed": []}
    activations = itertools.cycle(["relu", "mish"] if COMPILED else sorted(ACTIVATIONS))
    for seed in range(9):
        dimensions = (11, 3, dict(hidden=(33, 33), steps=3, activation=next(activations)))
        f, x, v, lam = build(dimensions, 5, 3, seed)
        exact = forward(plain, f, x, v), transposed(plain, f, x, lam, False)
        f, x, v, lam = build(dimensions, 5, 3, seed, torch.float32)
        own = forward(plain, f, x, v), transposed(plain, f, x, lam, False)
        got = forward(fused, f, x, v, precision=precision), transposed(fused, f, x, lam, False, precision=precision)
        for form, e, o, g in zip(ratios, exact, own, got, strict=True):
            ratios[form].append(relative_error(g, e) / relative_error(o, e))
    assert max(map(statistics.median, ratios.values())) <= 2.0, ratios


def test_inputs_in_any_layout():
    f, (s, a, z), (ds, da), lam = build((3, 2, dict(hidden=(7,), steps=2)), 5, 3, 0)
    strided = [t.repeat_interleave(2, 0)[::2] for t in (s, a, z, ds, da)]
    turned = [t.mT.contiguous().mT for t in (s, a, z, ds, da)]
    expected = forward(plain, f, (s, a, z), (ds, da))
    for s_, a_, z_, ds_, da_ in (strided, turned):
        assert relative_error(forward(fused, f, (s_, a_, z_), (ds_, da_)), expected) < 1e-12
        got = transposed(fused, f, (s_, a_, z_), lam.mT.contiguous().mT, True)
        assert relative_error(got, transposed(plain, f, (s, a, z), lam, False)) < 1e-12


def activation_kernel(value, slope, z, NET: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    act, derivative = activate(tl.load(z + at), NET)
    tl.store(value + at, act)
    tl.store(slope + at, derivative)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_near_zero_far_out_and_for_nan(name, dtype):
    z = torch.cat([10.0 ** torch.arange(-12, 3, dtype=torch.float64), torch.linspace(0.01, 6.0, 48, dtype=torch.float64)])
    z = torch.cat([z, -z, torch.tensor([0.0, float("nan")], dtype=torch.float64)])
    value, gate = ACTIVATIONS[name].gated(z)
    slope = ACTIVATIONS[name].times(torch.ones_like(z), gate)
    got, derivative = (torch.zeros(128, dtype=dtype, device=DEVICE) for _ in range(2))
    net = Net((1,), name, False, False, 1, 0.0)
    triton.jit(activation_kernel)[(1,)](got, derivative, z.to(DEVICE, dtype), net, 128, enable_fp_fusion=True)
    assert got[-1].isnan()
    limit = 8 * torch.finfo(dtype).eps
    got, derivative, value, slope = (x.cpu().double()[:-1] for x in (got, derivative, value, slope))
    # relative on the side where the function is not a difference of nearly equal numbers
    assert ((got - value).abs() <= limit * (value.abs() if name == "tanh" else value.abs() + (z[:-1] < 0))).all()
    assert ((derivative - slope).abs() <= limit * (1 + z[:-1].abs())).all()


@pytest.mark.parametrize(
    ("d", "m", "options", "words"),
    [
        (65, 1, {}, "state dimension of at most 64, got 65"),
        (1, 33, {}, "action dimension of at most 32, got 33"),
        (2, 1, dict(hidden=(16, 1025)), "hidden width of at most 1024, got 1025"),
        (2, 1, dict(hidden=(4,) * 7), "hidden layers of at most 6, got 7"),
    ],
)
def test_what_is_too_large_is_refused_with_the_limit(d, m, options, words):
    dynamics = DiffusionDynamics(d, m, **{"hidden": (8,), "steps": 2, **options}).to(DEVICE)
    assert words in unsupported_reason(dynamics)
    with pytest.raises(ValueError, match=words):
        fused.chain_record(dynamics, *(torch.zeros(1, *x, device=DEVICE) for x in ((d,), (m,), (3, d))))


def test_what_is_not_ours_is_refused():
    class Changed(DiffusionDynamics):
        pass

    for dynamics in (DeterministicDynamics(2, 1), Changed(2, 1, hidden=(8,)), torch.nn.Linear(2, 2)):
        assert f"or MeanFlowDynamics, got {type(dynamics).__name__}" in unsupported_reason(dynamics)
    hooked = DiffusionDynamics(2, 1, hidden=(8,))
    hooked.denoiser.register_forward_hook(lambda *_: None)
    assert "changed parts" in unsupported_reason(hooked)
    assert "torch.float16" in unsupported_reason(DiffusionDynamics(2, 1, hidden=(8,)).half().to(DEVICE))
    assert unsupported_reason(DiffusionDynamics(2, 1, hidden=(8,)).to(DEVICE)) is None
    mixed = DiffusionDynamics(2, 1, hidden=(8,)).to(DEVICE)
    mixed.state_mean = mixed.state_mean.double()
    assert "dynamics.state_mean: expected torch.float32 on" in unsupported_reason(mixed)


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="expected one of 'ieee', 'tf32x3', 'tf32', got 'bf16'"):
        launch.check_precision("bf16", torch.float32)
    with pytest.raises(ValueError, match="expected 'ieee' in float64, got 'tf32'"):
        launch.check_precision("tf32", torch.float64)
    assert launch.check_precision(None, torch.float64) == "ieee"
    assert launch.check_precision(None, torch.float32) == ("tf32x3" if COMPILED else "ieee")


@settings(max_examples=200)
@given(
    st.integers(1, 5000), st.integers(0, 96), st.integers(1, 1024), st.sampled_from([16, 64]), st.sampled_from([None, 2, 16])
)
def test_a_plan_covers_every_particle_and_tangent_once(particles, T, widest, rows, per_particle):
    p = launch.plan(launch.Tile(rows, 128, 32, 4, 3, per_particle), particles, T, widest, "ieee", torch.device("cpu"))
    assert p.particles * p.shape.R == p.shape.rows
    assert p.programs * p.rounds * p.particles >= particles > (p.programs * (p.rounds - 1)) * p.particles
    assert p.pieces * (p.shape.R - 1) >= T > (p.pieces - 1) * (p.shape.R - 1) or T == 0 == p.shape.R - 1
    assert widest <= p.shape.LD
    assert p.shape.LD % p.shape.columns == p.shape.columns % p.shape.inner == 0


def test_a_gpu_with_little_shared_memory_gets_fewer_stages_from_then_on():
    tried = []

    class Kernel:
        def __getitem__(self, grid):
            def run(*arguments, num_stages, **named):
                tried.append(num_stages)
                if num_stages > limit:
                    raise OutOfResources(200_000, 100_000, "shared memory")

            return run

    kernel, cut = Kernel(), launch.plan(launch.Tile(16, 16, 16, 4, 3), 1, 0, 16, "ieee", torch.device("cpu"))
    limit = 2
    for _ in range(2):
        launch.start(kernel, cut, torch.zeros(1))
    assert tried == [3, 2, 2]
    limit = 0
    with pytest.raises(KernelBuildError, match="OutOfResources"):
        launch.start(kernel, cut, torch.zeros(1))


def test_a_floors_operations_are_those_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    f, x, v, lam = build((11, 3, dict(hidden=(33, 16), steps=3)), 5, 4, 0)
    table = plain.level_table(f)
    with FlopCounterMode(display=False) as counter:
        plain.chain_forward(f, *x, *v, table)
    counted = launch.floor(f, 5, 4, tile=launch.Tile(16, 32, 16, 4, 2))
    assert counted.operations == counter.get_total_flops()
    assert counted.padded_operations == counted.operations // 25 * 48  # 5 of 8 rows carry something, 5 of 6 particles
    assert counted.layers == 9
    with FlopCounterMode(display=False) as counter:
        transposed(plain, f, x, lam, False)
    extra = 2 * 3 * 33 * f.denoiser.embedding_dim  # the level table, made anew
    assert launch.floor(f, 5, 0, adjoint="stored").operations == counter.get_total_flops() - extra
