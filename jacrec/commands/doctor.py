"""`jacrec doctor`: what this installation can and cannot do, and how to fix what it cannot."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import tyro
from rich.table import Table
from rich.text import Text

import jacrec
from jacrec.evaluation.markdown import terminal
from jacrec.util.processors import affinity, cpu_quota, processors

REQUIRED = (
    "torch",
    "numpy",
    "numba",
    "safetensors",
    "gymnasium",
    "mujoco",
    "minari",
    "h5py",
    "pyyaml",
    "filelock",
    "tyro",
    "rich",
    "matplotlib",
    "imageio",
)
OPTIONAL = {"triton": "on Linux: pip install 'triton>=3.6'", "ray": "pip install 'jacrec[cluster]'"}
"""packages that some modules import and an installation may lack, with how to get them"""
COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}
REPORT = "run the tests (make test) and report the failure"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    status: str
    """ "ok", "note" (something optional is missing) or "broken" """
    found: str
    remedy: str = ""


def doctor() -> int:
    """Check this installation: packages, modules, devices, gradients, kernels, physics, rendering, data.

    The exit code is 1 if something essential is broken.
    """
    table = Table("", "check", "found", "remedy")
    found = checks()
    for check in found:
        table.add_row(Text(check.status, COLOURS[check.status]), check.name, check.found, check.remedy)
    terminal().print(table)
    broken = [check.name for check in found if check.status == "broken"]
    print(f"broken: {', '.join(broken)}" if broken else "everything essential works")
    return 1 if broken else 0


def checks() -> list[Check]:
    """All checks, most important first. A check that raises is reported as broken."""
    made: list[Callable[[], list[Check]]] = [
        check_python,
        check_packages,
        check_modules,
        check_devices,
        check_gradient,
        check_kernels,
        check_physics,
        check_rendering,
        check_data,
    ]
    found = []
    for check in made:
        try:
            found += check()
        except Exception as error:  # the remaining checks still run
            name = check.__name__.removeprefix("check_")
            found.append(Check(name, "broken", _first_line(error), _remedy()))
    return found


def check_python() -> list[Check]:
    """The interpreter."""
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} at {sys.prefix}"
    return [Check("python", "ok" if good else "broken", found, "" if good else "install Python 3.11 or newer")]


def check_packages() -> list[Check]:
    """The packages that jacrec requires, and their versions."""
    found, missing = [], []
    for name in REQUIRED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    result = [Check("packages", "ok" if found else "broken", ", ".join(found))]
    if missing:
        result.append(Check("packages", "broken", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"))
    unsuited = unsuited_packages()
    if unsuited:
        got = ", ".join(f"{name} {version(name)}" for name in unsuited)
        wanted = " ".join(f"'{name}{bounds}'" for name, bounds in unsuited.items())
        result.append(Check("packages", "broken", f"versions that jacrec does not work with: {got}", f"pip install {wanted}"))
    return result


def unsuited_packages() -> dict[str, str]:
    """Installed packages outside the bounds of jacrec's requirements, with these bounds: {"mujoco": "<4,>=3.17"}."""
    found = {}
    for requirement in requirements():
        name, bounds = re.fullmatch(r"([\w.-]+)(?:\[.*?\])?\s*\(?([<>=!~\d.,\s]*).*", requirement.partition(";")[0]).groups()  # pyright: ignore
        bounds = bounds.strip()
        try:
            installed = _numbers(version(name))
        except PackageNotFoundError:
            continue  # see `REQUIRED`
        low, high = (re.search(rf"{sign}\s*([\d.]+)", bounds) for sign in (">=", "<"))
        if (low and installed < _numbers(low[1])) or (high and installed >= _numbers(high[1])):
            found[name] = bounds
    return found


def _remedy() -> str:
    """What to do about modules that fail."""
    unsuited = unsuited_packages()
    return (
        f"install other versions first: {', '.join(unsuited)}"
        if unsuited
        else "reinstall jacrec; if that does not help, report it"
    )


def requirements() -> list[str]:
    """What jacrec requires without extras; nothing if it is not installed but run from a checkout."""
    try:
        return [x for x in requires("jacrec") or () if "extra ==" not in x]
    except PackageNotFoundError:
        return []


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, of equal length for all."""
    found = [int(x) for x in re.match(r"[\d.]*", text.partition("+")[0])[0].split(".") if x]  # pyright: ignore[reportOptionalSubscript]
    return tuple([*found, 0, 0, 0, 0][:4])


def check_modules() -> list[Check]:
    """Every module of jacrec can be imported; those that need an optional package only where it is installed."""
    broken, without, count = [], {}, 0
    for name in module_names(jacrec):
        count += 1
        try:
            import_module(name)
        except Exception as error:
            package = (getattr(error, "name", None) or "").split(".")[0]
            if isinstance(error, ModuleNotFoundError) and package in OPTIONAL:
                without[package] = without.get(package, 0) + 1
            else:
                broken.append(f"{name} ({_first_line(error)})")
    if broken:
        found = f"{len(broken)} of {count} cannot be imported: {'; '.join(broken)}"
        return [Check("modules", "broken", found, _remedy())]
    notes = [
        Check("modules", "note", f"{missing} of {count} need {package}, which is not installed", OPTIONAL[package])
        for package, missing in without.items()
    ]
    return notes or [Check("modules", "ok", f"all {count} of jacrec {jacrec.__version__} can be imported")]


def module_names(package: ModuleType) -> Iterator[str]:
    """The full names of all modules below a package except `__main__`.

    In a checkout `jacrec.kernels` is a module whose `__path__` leads to the folder of the kernels, which
    `pkgutil.walk_packages` would not enter.
    """
    for info in iter_modules(package.__path__, f"{package.__name__}."):
        if info.name.endswith(".__main__"):
            continue
        yield info.name
        try:
            module = import_module(info.name)
        except Exception:  # raised again where the name is imported
            continue
        if hasattr(module, "__path__"):
            yield from module_names(module)


def check_devices() -> list[Check]:
    """Processors, threads and GPUs."""
    import torch

    cores = processors()
    threads = torch.get_num_threads()
    crowded = threads > cores
    found, quota = f"{cores} usable cores", cpu_quota()
    if quota is not None and quota < affinity():
        found = (
            f"{cores} of {affinity()} processors usable: a quota of {quota:g} processors (cgroup cpu.max) limits this process"
        )
    cpu = Check(
        "cpu",
        "note" if crowded else "ok",
        f"{found}, torch uses {threads} threads",
        f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down" if crowded else "",
    )
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [cpu, Check("gpu", "ok", f"{', '.join(names)} (CUDA {torch.version.cuda})")]
    if shutil.which("nvidia-smi"):
        remedy = "install a CUDA build of torch" if torch.version.cuda is None else "check the driver with nvidia-smi"
        return [cpu, Check("gpu", "note", f"a driver is installed, but torch {torch.__version__} cannot use it", remedy)]
    return [cpu, Check("gpu", "ok", "none; everything runs on the CPU")]


def small_problem(device: str = "cpu", single: bool = False) -> tuple:
    """A small policy, world, state and noise, of three particles in float64 or a single one in float32."""
    import torch

    from jacrec.engine.rollout import noise_like
    from jacrec.models.dynamics import DiffusionDynamics
    from jacrec.models.networks import Actor, RewardModel, TwinCritic
    from jacrec.models.world import World

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Actor(4, 2, (16, 16)).double()
        world = World(
            DiffusionDynamics(4, 2, (16, 16), steps=3).double(),
            RewardModel(4, 2, (16,)).double(),
            TwinCritic(4, 2, (16, 16)).double(),
            0.99,
        )
    state = torch.randn(4, generator=generator, dtype=torch.float64)
    noise = noise_like(world, state, 1 if single else 3, 2, generator)
    dtype = torch.float32 if single else torch.float64
    return tuple(part.to(device).to(dtype) for part in (policy, world, state, noise))


def gradient_error(*methods, device: str = "cpu", single: bool = False) -> float:
    """The largest difference between the methods' gradients and autograd's, relative to the largest entry."""
    from jacrec.engine.methods import Autograd, policy_gradient

    problem = small_problem(device, single)
    reference = policy_gradient(*problem, method=Autograd()).gradient
    scale = max(float(g.abs().max()) for g in reference.values())
    gradients = [policy_gradient(*problem, method=method).gradient for method in methods]
    return max(float((gradient[k] - reference[k]).abs().max()) for gradient in gradients for k in reference) / scale


def check_gradient() -> list[Check]:
    """The engine against autograd on a small problem."""
    from jacrec.engine.methods import Adjoint, Forward

    error = gradient_error(Forward(), Adjoint())
    good = error < 1e-10
    found = f"forward and adjoint recursions agree with autograd to {error:.0e}"
    return [Check("gradient", "ok" if good else "broken", found, "" if good else REPORT)]


def check_kernels() -> list[Check]:
    """The fused kernels: the CPU's on a small problem, whether a GPU's can be compiled."""
    import torch

    from jacrec.engine import dispatch
    from jacrec.engine.methods import Adjoint, Auto
    from jacrec.engine.shapes import problem

    reason = dispatch.unsupported_reason(problem(*small_problem()), "adjoint")
    if reason is None:
        from jacrec.kernels.cpu.base.host import VECTOR_BYTES

        error = gradient_error(Adjoint(kernel="fused"), Auto())
        good = error < 1e-10
        found = f"numba {version('numba')}, {8 * VECTOR_BYTES}-bit vectors; agree with autograd to {error:.0e}"
        cpu = Check("cpu kernels", "ok" if good else "broken", found, "" if good else REPORT)
    else:
        cpu = Check("cpu kernels", "note", f"gradients are computed in plain torch: {reason}", "pip install numba")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") is None:
        return [cpu, Check("gpu kernels", "note", "triton is not installed", OPTIONAL["triton"])]
    found = f"triton {version('triton')}, "
    if torch.cuda.is_available():
        unset = Check("gpu kernels", "note", found + "interprets", "unset TRITON_INTERPRET")
        return [cpu, unset if interpreted else check_triton(found)]
    how = "interpreted (slow: for tests)" if interpreted else "no GPU: usable only for tests, with TRITON_INTERPRET=1"
    return [cpu, Check("gpu kernels", "ok", found + how)]


def check_triton(found: str) -> Check:
    """A GPU's fused kernels on small problems: whether they compile, and agree with autograd.

    Errors of a running GPU are raised: they are no reason for plain torch.
    """
    from jacrec.engine.methods import Adjoint, Forward

    methods = Forward(kernel="fused"), Adjoint(kernel="fused"), Adjoint(kernel="fused", recompute=True)
    reason = None
    try:
        from jacrec.kernels.failures import KernelBuildError

        error, single = (gradient_error(*methods, device="cuda", single=single) for single in (False, True))
    except ImportError as missing:
        reason = missing
    except (KernelBuildError, ValueError) as refused:
        reason = refused
    if reason is not None:
        told = f"{found}gradients are computed in plain torch: {type(reason).__name__}: {' '.join(str(reason).split())}"
        return Check("gpu kernels", "note", told, "install a C compiler, or report this message")
    good = error < 1e-10 and single < 1e-3
    told = f"{found}compiles for the GPU; agrees with autograd to {error:.0e}, in float32 to {single:.0e}"
    return Check("gpu kernels", "ok" if good else "broken", told, "" if good else REPORT)


def check_physics() -> list[Check]:
    """MuJoCo's contacts against the reference."""
    from jacrec.envs.physics import check_physics as examine

    outcome = examine()
    return [Check("physics", "ok" if outcome.ok else "broken", outcome.message, "" if outcome.ok else "see what was found")]


def check_rendering() -> list[Check]:
    """Off-screen rendering, which only videos need."""
    from jacrec.evaluation.rendering import REMEDY, probe

    outcome = probe()
    video = "MP4" if find_spec("imageio_ffmpeg") else "GIF (pip install 'jacrec[video]' for MP4)"
    if outcome.ok:
        return [Check("rendering", "ok", f"{outcome.backend} works; videos as {video}")]
    return [Check("rendering", "note", f"no videos: {outcome.reason}", REMEDY)]


def check_data() -> list[Check]:
    """The folder of data sets and its content."""
    from minari.storage.datasets_root_dir import get_dataset_path

    from jacrec.data.catalog import list_datasets

    root = Path(get_dataset_path())
    sets = list_datasets()
    nearest = next(p for p in (root, *root.parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        remedy = "set MINARI_DATASETS_PATH to a writable folder"
        return [Check("data", "broken", f"{root} is not writable", remedy)]
    free = shutil.disk_usage(nearest).free / 1e9
    names = ", ".join(x.dataset_id for x in sets[:6]) + (f" and {len(sets) - 6} more" if len(sets) > 6 else "")
    remedy = "" if sets else "make one: jacrec data make hopper medium-replay"
    note = Check("data", "ok", f"{root}: {names or 'no data sets yet'}; {free:.0f} GB free", remedy)
    if free < 1:
        return [Check("data", "note", note.found, "free some disk space: a data set takes 10 to 500 MB")]
    return [note]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


COMMAND = doctor


def run(args: list[str]) -> int:
    """Run the verb."""
    return tyro.cli(COMMAND, args=args, prog="jacrec doctor")
