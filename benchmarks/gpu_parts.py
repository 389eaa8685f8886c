"""What benchmarks/gpu.py measures, as rows by part: a name, and a call that returns what is written."""

import importlib
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from types import SimpleNamespace

import decision_speed
import floor
import grad_speed
import harness
import kernel_chain
import kernel_speed
import memory
import torch
from gpu_rows import Row
from peers import CONTESTANTS
from problems import Case, Size, make

from jacrec.engine.gradient import forward_gradient
from jacrec.engine.shapes import problem
from jacrec.engine.types import PolicyGradient

ROOT = harness.RESULTS.parent.parent
TESTS = ("test_triton_gradient", "test_triton", "test_triton_served", "test_triton_graphs")
FIRST = (16, 1, 64, 4096, 256)
"""M in the order of measurement: what is wanted most comes first"""


@dataclass(frozen=True)
class Scale:
    """How large the rows are."""

    device: str
    width: int
    horizon: int
    steps: int
    tasks: tuple[str, ...]
    smoke: tuple[int, ...]
    """M of the smoke test"""
    particles: tuple[int, ...]
    contestants: tuple[str, ...]
    batches: tuple[int, ...]
    """rows of a training update"""
    lockstep: int
    """environments of a joint decision"""
    tiled: tuple[int, ...]
    """M of the tiles"""
    repetitions: int
    budget: float
    tests: tuple[str, ...]
    """files of tests/kernels, with an expression that selects tests"""

    def size(self, task: str, M: int, **changes: object) -> Size:
        """A size of this scale."""
        return replace(Size(task, M, self.horizon, self.steps, self.width), **changes)


FULL = Scale(
    device="cuda",
    width=256,
    horizon=5,
    steps=20,
    tasks=("hopper", "halfcheetah"),
    smoke=(1, 3, 64),
    particles=FIRST,
    contestants=tuple(c.name for c in CONTESTANTS.values() if "cuda" in c.default_on),
    batches=(256, 1024),
    lockstep=10,
    tiled=(16, 256, 4096),
    repetitions=9,
    budget=0.3,
    tests=tuple(f"{name}.py" for name in TESTS),
)
REHEARSAL = Scale(
    device="cpu",
    width=16,
    horizon=1,
    steps=2,
    tasks=("hopper",),
    smoke=(1, 3),
    particles=(1, 3),
    contestants=("torch autograd", "adjoint"),
    batches=(512, 1024),
    lockstep=2,
    tiled=(1,),
    repetitions=1,
    budget=0.05,
    tests=("test_triton_gradient.py -k vector",),
)


def case_of(scale: Scale, size: Size, dtype: torch.dtype = torch.float32) -> Case:
    """The problem of a size on the scale's device."""
    return make(size, dtype=dtype, device=scale.device)


@cache
def rates(device: str, width: int) -> floor.Rates:
    """The machine's rates, measured at the first use in a process."""
    return floor.measure_rates(width, torch.float32, device)


def smoke(scale: Scale) -> list[Row]:
    """The kernels of this part compiled side by side, then each against its plain twin; half a minute."""
    last = scale.smoke[-1]
    asked = [(form, M, torch.float32) for M in scale.smoke for form in ("rollout", "forward", "adjoint", "recompute")]
    asked.append(("adjoint", last, torch.float64))
    sizes = {M: scale.size("hopper", M, K=min(scale.steps, 10)) for M in scale.smoke}

    def calls() -> list[Callable[[], object]]:
        return [partial(computing(form), problem(*case_of(scale, sizes[M], dtype).arguments)) for form, M, dtype in asked]

    rows: list[Row] = [("compile", partial(compiled, scale, calls)), ("dot float64", partial(dot_float64, scale))]
    for form, M, dtype in asked:
        name = f"{form} M {M}" if dtype == torch.float32 else f"{form} float64 M {M}"
        rows.append((name, partial(against_twin, scale, sizes[M], form, dtype)))
    if scale.device == "cuda":
        rows.append(("recording beside a busy thread", partial(recorded_beside_a_thread, scale)))
    return rows


def compiled(scale: Scale, calls: Callable[[], Sequence[Callable[[], object]]]) -> dict:
    """Compile what calls launch, on all cores; interpreted kernels need none."""
    if scale.device != "cuda":
        return {"compiled": 0}
    made = calls()
    return {"compiled": len(made), "seconds": importlib.import_module("jacrec.kernels.warmup").compile_calls(made)}


def computing(form: str) -> Callable[..., PolicyGradient]:
    """The gradient by a form of the kernels; "forward" has a chain for each step, however few the particles are."""
    gradient, rollout, chain = (importlib.import_module(f"jacrec.kernels.{name}") for name in ("gradient", "rollout", "chain"))
    return {
        "rollout": rollout.rollout_gradient,
        "forward": partial(forward_gradient, chain=chain),
        "adjoint": gradient.adjoint_gradient,
        "recompute": partial(gradient.adjoint_gradient, recompute=True),
        "auto": gradient.auto_gradient,
    }[form]


def dot_float64(scale: Scale) -> dict:
    """tl.dot in float64 at the shapes of every product of the kernels: Triton's code for some shapes has been wrong."""
    dots, launch = (importlib.import_module(name) for name in ("gpu_dot", "jacrec.kernels.launch"))
    tile = launch.DOUBLE
    inputs = (16, 32, 64)  # padded states and actions, up to the largest that the kernels serve
    shapes = {(tile.rows, tile.columns, tile.inner)}  # a layer
    shapes |= {(tile.rows, tile.columns, n) for n in inputs} | {(tile.rows, n, tile.inner) for n in inputs}
    return {f"{m}x{n}x{k}": dots.error(m, n, k, scale.device) for m, n, k in sorted(shapes)}


def against_twin(scale: Scale, size: Size, form: str, dtype: torch.dtype = torch.float32) -> dict:
    """Errors of a form's gradient and of its plain twin's, both against float64.

    Raises:
        SystemExit: the kernel's is too large.
    """
    case = case_of(scale, size, dtype)
    exact = CONTESTANTS["adjoint"].prepare(case.to(dtype=torch.float64)).flat()
    own = grad_speed.disagreement(CONTESTANTS["adjoint"].prepare(case).flat(), exact)
    result = computing(form)(problem(*case.arguments))
    flat = torch.cat([g.reshape(-1).double() for g in result.gradient.values()])
    error = grad_speed.disagreement(flat, exact.to(flat.device))
    # a sign that changes near a kink is no mistake of the kernel: 3e-3 was the most in 90 float32 gradients of plain torch
    if not error <= max(kernel_chain.ERRORS * own, 1e-2 if dtype == torch.float32 else 1e-9):
        raise SystemExit(f"{form}: expected an error near {own:.1e}, plain torch's, got {error:.1e}")
    return {"error": error, "plain_error": own}


def recorded_beside_a_thread(scale: Scale) -> dict:
    """Record gradients while another thread allocates and synchronises."""
    gradient, graphs = (importlib.import_module(f"jacrec.kernels.{name}") for name in ("gradient", "graphs"))
    stop, made, failed = threading.Event(), [], []
    cases = [case_of(scale, scale.size("hopper", M)) for M in scale.smoke]

    def busy() -> None:
        try:
            while not stop.is_set():
                made.append(float(cases[0].state.new_ones(1 << 20).sum()))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for case in cases:
            graphs.forget()
            p = problem(*case.arguments)
            for _ in range(3):
                gradient.adjoint_gradient(p)
    finally:
        stop.set()
        thread.join()
    if failed or not made:
        raise SystemExit(f"the other thread: expected allocations beside the recordings, got {len(made)}, then {failed}")
    return {"allocations": len(made), "bytes": graphs._RECORDINGS.bytes}


def tests(scale: Scale) -> list[Row]:
    """The kernels' tests with compiled kernels, a row for each file."""
    return [(words, partial(run_tests, words)) for words in scale.tests]


def run_tests(words: str) -> dict:
    """Run a file of tests; the numbers of its last line.

    Raises:
        SystemExit: a test failed; the end of pytest's report.
    """
    file, *selection = words.split(" ")
    side_by_side = ["-n", str(min(12, harness.usable_cores()))] if find_spec("xdist") and not selection else []
    # without the phase that looks for smaller failing examples: each would be a compilation
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"]
    done = subprocess.run(
        [*command, *side_by_side, f"tests/kernels/{file}", *selection], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{file}: {done.stdout[-1500:]}{done.stderr[-500:]}")
    return {key: int(n) for n, key in re.findall(r"(\d+) (passed|skipped|deselected)", done.stdout.splitlines()[-1])}


def kernels(scale: Scale) -> list[Row]:
    """The chain's kernels alone, in every precision."""
    fused = importlib.import_module("jacrec.kernels.chain")
    precisions = kernel_speed.PRECISIONS["cuda"] if scale.device == "cuda" else ["ieee"]

    def measured(size: Size) -> list[dict]:
        tangents = [size.m, size.d + size.m]
        machine = rates(scale.device, scale.width)
        return kernel_chain.measure_chain(case_of(scale, size), fused, tangents, precisions, machine, scale.repetitions)

    sizes = [scale.size(task, M, K=min(scale.steps, 10)) for M in scale.particles for task in scale.tasks]

    def calls() -> list[Callable[[], object]]:
        works = [work for size in sizes for work in kernel_chain.chain_work(case_of(scale, size), [size.m, size.d + size.m])]
        return [partial(work.call, fused, precision=precision) for work in works for precision in precisions]

    return [("compile", partial(compiled, scale, calls)), *((str(size), partial(measured, size)) for size in sizes)]


def gradients(scale: Scale) -> list[Row]:
    """Whole gradients against their peers."""

    def measured(size: Size) -> dict:
        machine = rates(scale.device, size.width)
        row = grad_speed.measure_size(
            size, scale.contestants, machine, device=scale.device, repetitions=scale.repetitions, budget=scale.budget
        )
        return {**row, "launch_estimates": floor.launch_estimates(case_of(scale, size))}

    sizes = [scale.size(task, M) for task in scale.tasks for M in scale.particles]
    if scale.device == "cuda":
        sizes += [Size("hopper", M, 5, K, scale.width, model) for model, K in grad_speed.CHEAP for M in (1, 16)]

    def calls() -> list[Callable[[], object]]:
        problems = [problem(*case_of(scale, size).arguments) for size in sizes]
        fused = importlib.import_module("jacrec.kernels.gradient")
        served = [p for p in problems if fused.unsupported_reason(p, "adjoint") is None]
        return [partial(fused.compile_form, p, form) for p in served for form in ("auto", "forward", "adjoint")]

    return [("compile", partial(compiled, scale, calls)), *((str(size), partial(measured, size)) for size in sizes)]


def decisions(scale: Scale) -> list[Row]:
    """Decisions of one environment and of several in lock-step."""
    ask = decision_speed.Ask(1, scale.device, 200 if scale.device == "cuda" else 10, min(scale.budget * 3, 1.0))

    def measured(size: Size, batch: int | None = None) -> dict:
        return {**asdict(size), "N": batch, "ms": decision_speed.decisions(size, ask, batch=batch)}

    rows: list[Row] = []
    for task, M in itertools.product(scale.tasks, scale.smoke):
        rows.append((f"{task} M {M}", partial(measured, scale.size(task, M, K=min(scale.steps, 10)))))
    few = scale.size("hopper", min(16, scale.particles[-1]), K=min(scale.steps, 10))
    return [
        *rows,
        ("meanflow", partial(measured, replace(few, K=1, model="meanflow"))),
        (f"{scale.lockstep} in lock-step", partial(measured, few, scale.lockstep)),
    ]


def memories(scale: Scale) -> list[Row]:
    """Peak memory by method and K."""
    steps = memory.STEPS if scale.device == "cuda" else memory.STEPS[:1]

    def measured(method: str, K: int) -> dict:
        return {k: v for k, v in memory.measure(method, K, scale.device).items() if k != "probes"}

    return [(f"{method} K {K}", partial(measured, method, K)) for K in steps for method in memory.METHODS]


def tiles(scale: Scale) -> list[Row]:
    """The tiles that need little stack, compiled side by side for a kernel, then timed one by one."""
    launch, rollout = (importlib.import_module(f"jacrec.kernels.{name}") for name in ("launch", "rollout"))
    fused = importlib.import_module("jacrec.kernels.chain")
    candidates = [
        launch.Tile(r, c, i, 8, s) for r in (16, 32, 64) for c in (64, 128) for i in (16, 32) for s in (2, 3) if r * c <= 4096
    ]
    rows: list[Row] = []
    for M in scale.tiled:
        case = cache(partial(case_of, scale, scale.size("hopper", M, K=min(scale.steps, 10))))

        def work(name: str, case: Callable[[], Case] = case) -> Callable[..., object]:
            if name == "rollout":
                return partial(rollout.rollout_gradient, problem(*case().arguments))
            works = {x.kernel: x for x in kernel_chain.chain_work(case(), [case().size.m])}
            return partial(works[name].call, fused)

        def timed(name: str, tile, work: Callable[[str], Callable[..., object]] = work) -> dict:
            run = work(name)
            if scale.device == "cpu":
                begun = time.perf_counter()
                run(tile=tile)
                return {"tile": asdict(tile), "ms": round(1e3 * (time.perf_counter() - begun), 4)}
            return {"tile": asdict(tile), "ms": round(launch.tune(lambda chosen: run(tile=chosen), [tile])[1][tile], 4)}

        def calls(
            forms: Sequence[str], few: Sequence, work: Callable[[str], Callable[..., object]] = work
        ) -> list[Callable[[], object]]:
            return [partial(work(form), tile=tile) for form in forms for tile in few]

        forms = ("chain_forward", "chain_adjoint") + (("rollout",) if M <= 256 else ())
        few = candidates[:1] if scale.device == "cpu" else candidates
        rows.append((f"compile M {M}", partial(compiled, scale, partial(calls, forms, few))))
        rows += [
            (f"{form} M {M} {t.rows} x {t.columns} x {t.inner}, {t.stages} stages", partial(timed, form, t))
            for t in few
            for form in forms
        ]
    return rows


def training(scale: Scale) -> list[Row]:
    """Updates of ReBRAC, of the world model and of the reward model per second; needs yaml."""
    speed = importlib.import_module("training_speed")
    data = cache(partial(speed.noise_data, *speed.SIZES["hopper"]))
    options = SimpleNamespace(
        device=scale.device, task="hopper", width=scale.width, repetitions=scale.repetitions, turns=min(3, scale.repetitions)
    )

    @cache
    def difference() -> float:
        found = speed.disagreement(data(), scale.width, scale.device)
        if not found <= 1e-10:
            raise SystemExit(f"training: expected weights equal to 1e-10 after 20 updates, got {found:.1e}; nothing was timed")
        return found

    def measured(batch: int) -> dict:
        return {"float64_difference": difference(), "rows": speed.measure(data(), options, batch, 1, False)}

    return [(f"batch {batch}", partial(measured, batch)) for batch in scale.batches]


PARTS: dict[str, Callable[[Scale], list[Row]]] = {
    "smoke": smoke,
    "tests": tests,
    "gradients": gradients,
    "kernels": kernels,
    "decisions": decisions,
    "memory": memories,
    "tiles": tiles,
    "training": training,
}
