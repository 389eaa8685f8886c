"""Registers, stack and shared memory of every Triton kernel per tile, compiled ahead of time; no GPU is needed.

A multiprocessor has 65 536 registers and 227 KB of shared memory: more than 128 registers in a program of 8 warps leave room
for one. Stack is spilled registers, and each access to it one to memory. The tiles that `jacrec.kernels.launch` and
`jacrec.kernels.rollout` choose from come first, then neighbours. Writes benchmarks/results/kernel_resources_sm_<sm>.json.

    python benchmarks/kernel_resources.py                  # a quarter of an hour on two cores
    python benchmarks/kernel_resources.py --chosen         # the chosen tiles alone
"""

import argparse
import ast
import hashlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import harness
import torch

WARP, REGISTERS, SHARED = 32, 65536, 227 * 1024
D, M_ACTION, K = 11, 3, 10


@dataclass(frozen=True)
class Ask:
    """One compilation: a kernel's form, its dtype and its tile."""

    form: str
    """"forward", "adjoint", "recompute" or "rollout" """
    dtype: str
    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    chosen: bool
    """whether the engine takes this tile for this form"""


def sources() -> str:
    """A digest of the kernels' code without comments, docstrings and layout, from which a record is seen to be of other code."""
    digest = hashlib.sha256()
    for path in sorted((harness.RESULTS.parent.parent / "kernels").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "@triton.jit" not in text:
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def asks(only_chosen: bool) -> list[Ask]:
    """The chosen tiles, and neighbours of them."""
    from jacrec.kernels import launch, rollout

    chains = ("forward", "adjoint", "recompute")
    chosen = [(form, "float32", tile) for tile in launch.TILES.values() for form in chains]
    chosen += [("rollout", "float32", tile) for tile in rollout.ROLLOUT_TILES]
    chosen += [(form, "float64", launch.DOUBLE) for form in (*chains, "rollout")]
    found = [ask(form, dtype, tile, True) for form, dtype, tile in chosen]
    if not only_chosen:
        others = [
            launch.Tile(rows, columns, inner, 8, 3) for rows in (16, 32, 64) for columns in (64, 128, 256) for inner in (16, 32)
        ]
        neighbours = [ask(form, "float32", tile, False) for tile in others for form in (*chains, "rollout")]
        taken = {(x.form, x.rows, x.columns, x.inner) for x in found if x.dtype == "float32"}
        found += [x for x in neighbours if (x.form, x.rows, x.columns, x.inner) not in taken]
    return found


def ask(form: str, dtype: str, tile, chosen: bool) -> Ask:
    """An `Ask` of a `jacrec.kernels.launch.Tile`."""
    return Ask(form, dtype, tile.rows, tile.columns, tile.inner, tile.warps, tile.stages, chosen)


def compile_one(what: Ask, sm: int) -> list[dict]:
    """A row for each kernel that a form launches, of hopper's sizes, 64 particles and H = 5."""
    from jacrec import Actor, DiffusionDynamics, RewardModel, TwinCritic, World
    from jacrec.engine.shapes import problem
    from jacrec.kernels import chain_adjoint, chain_forward, launch, rollout
    from tests.triton_ahead import ahead, usage

    torch.set_num_threads(1)
    dtype = getattr(torch, what.dtype)
    tile = launch.Tile(what.rows, what.columns, what.inner, what.warps, what.stages)
    f = DiffusionDynamics(D, M_ACTION, steps=K).to(dtype)
    B, T, H = 64, D + M_ACTION, 5
    s, a, z = (torch.zeros(*shape, dtype=dtype) for shape in ((B, D), (B, M_ACTION), (B, K + 1, D)))
    with ahead("cubin", sm) as found:
        if what.form == "forward":
            ds, da = (torch.zeros(B, T, n, dtype=dtype) for n in (D, M_ACTION))
            chain_forward.chain_forward(f, s, a, z, ds, da, tile=tile)
        elif what.form == "rollout":
            policy, *values = (x.to(dtype) for x in (Actor(D, M_ACTION), RewardModel(D, M_ACTION), TwinCritic(D, M_ACTION)))
            noise = torch.zeros(1, B, H, K + 1, D, dtype=dtype)
            rollout.rollout(problem(policy, World(f, values[0], values[1], 0.99), s[:1], noise), tile=tile)
        else:
            _, tape = chain_adjoint.chain_record(f, s, a, z, recompute=what.form == "recompute", tile=tile)
            chain_adjoint.chain_adjoint(f, tape, s, tile=tile)
    rows = []
    for done in found.compiled:
        own = usage(done.asm["cubin"])
        # registers are given out to a warp in units of 256
        per_warp = -(-own["registers"] * WARP // 256) * 256
        shared = done.shared or 0
        resident = min(REGISTERS // (per_warp * what.warps), SHARED // max(1, shared + 1024))
        rows.append({"kernel": done.kernel, **asdict(what), **own, "shared": shared, "resident": resident})
    return rows


def line(row: dict) -> str:
    """A row as it is printed."""
    tile = f"{row['rows']:3d} × {row['columns']:3d} × {row['inner']}, {row['warps']} warps"
    return (
        f"{row['form']:10s}{row['kernel']:22s}{row['dtype']:8s} {tile}  {row['registers']:3d} registers {row['stack']:5d} B stack "
        f"{row['shared'] / 1024:6.1f} KB shared, {row['resident']} resident{'  chosen' if row['chosen'] else ''}"
    )


def main(arguments: list[str] | None = None) -> dict:
    """Compile, print, write; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, default=90, help="compute capability, e.g. 80 or 90")
    parser.add_argument("--chosen", action="store_true", help="only the tiles that the engine takes")
    parser.add_argument("--jobs", type=int, default=harness.usable_cores(), help="compilations at once")
    parser.add_argument("--json", type=Path, help="where the results go; benchmarks/results for the usual sizes")
    options = parser.parse_args(arguments)
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(compile_one, what, options.sm) for what in asks(options.chosen)]
        for future in as_completed(futures):
            rows += future.result()
            print("\n".join(line(row) for row in rows[-len(future.result()) :]), flush=True)
    order = ("chosen", "dtype", "form", "rows", "columns", "inner", "kernel")
    rows.sort(key=lambda row: [not row["chosen"], *(row[name] for name in order[1:])])
    where = {**harness.environment(), "sm": options.sm, "sources": sources()}
    result = {"environment": where, "rows": rows}
    if options.json or harness.as_usual(parser, options, "jobs"):
        print(f"written: {harness.write(f'kernel_resources_sm_{options.sm}', result, options.json)}")
    return result


if __name__ == "__main__":
    main()
