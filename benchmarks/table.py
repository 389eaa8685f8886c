"""Tables of gradient times, made from benchmarks/results/grad_speed_*.json: one per machine.

python benchmarks/table.py                      # print it
python benchmarks/table.py --write docs/results.md    # insert it between <!-- grad_speed --> and <!-- /grad_speed -->
"""

import argparse
import json
import re
from pathlib import Path

from floor import is_limit, percent, share

RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- grad_speed -->\n).*?(<!-- /grad_speed -->)", re.DOTALL)
COLUMNS = (
    ("torch autograd", "torch autograd"),
    ("jax scan", "JAX jit"),
    ("forward", "Forward"),
    ("adjoint", "Adjoint"),
    ("forward fused", "Forward, fused"),
    ("adjoint fused", "Adjoint, fused"),
    ("auto", "Auto"),
)
"""the contestants shown, with their headings"""
PEERS = ("torch autograd", "torch checkpoint", "torch compile", "torch.func jacfwd", "jax scan", "jax unrolled")


def tables(results: Path = RESULTS) -> str:
    """The tables of all machines, in order of file names, each headed by a description of the environment."""
    parts = []
    for path in sorted(results.glob("grad_speed_*_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"{heading(result['environment'], result['rows'])}\n\n{table(result['rows'])}\n")
    return "\n".join(parts)


def heading(where: dict, rows: list[dict]) -> str:
    """Machine, relevant versions, commit, and the settings shared by all rows."""
    runs = [f"{where['machine']}", f"{where['threads']} threads" if "cuda" not in where else f"CUDA {where['cuda']}"]
    runs += [f"{name} {where[name]}" for name in ("torch", "numba", "triton", "jax") if where.get(name, "absent") != "absent"]
    shared = [f"{name} = {rows[0][name]}" for name in ("K", "width") if len({row[name] for row in rows}) == 1]
    settings = ", ".join([rows[0]["dtype"], *shared])
    return f"{', '.join(runs)}; commit {where['commit']}, {where['date']}. {settings}; milliseconds:"


def table(rows: list[dict]) -> str:
    """A Markdown table: per size the contestants' medians, Auto's ratio to the best peer, and its share of the floor.

    Records from before the floor was a limit have a ratio instead: the time of torch's own products and reads over Auto's.
    """
    limits = all(map(is_limit, rows))
    shown = [(name, title) for name, title in COLUMNS if any(name in row["ms"] for row in rows)]
    vary = [name for name in ("K", "width") if len({row[name] for row in rows}) > 1]
    several = len({row["model"] for row in rows}) > 1
    last = ["torch's products alone", "share of the floor"] if limits else ["torch's products and reads alone over Auto"]
    titles = ["", *(title for _, title in shown), "Auto: best peer's time over its own", *last]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        which = [row["task"], row["model"]] if several else [row["task"]]
        size = ", ".join([*which, *(f"{name} = {row[name]}" for name in ("H", *vary, "M"))])
        medians = {name: ms["median"] for name, ms in row["ms"].items()}
        cells = [f"{medians[name]:.2f}" if name in medians else "–" for name, _ in shown]
        peers = [medians[name] for name in PEERS if name in medians]
        auto = medians.get("auto")
        cells.append(f"{min(peers) / auto:.2f}×" if peers and auto else "–")
        if limits:
            cells.append(f"{2e3 * row['count']['multiply_adds'] / row['rates']['products']:.2f}")
            cells.append(percent(share(row["floor"]["ms"], auto)))
        else:
            cells.append(f"{row['floor']['ms'] / auto:.2f}×" if auto else "–")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(text: str, content: str) -> str:
    """`text` with `content` inserted between its markers.

    Raises:
        ValueError: the text has no markers.
    """
    if not MARKED.search(text):
        raise ValueError(
            "expected the lines <!-- grad_speed --> and <!-- /grad_speed -->, got none; insert them where the table belongs"
        )
    return MARKED.sub(lambda marks: f"{marks[1]}{content}{marks[2]}", text)


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, or insert them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page with markers")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(tables(), end="")
        return
    page = options.write.read_text(encoding="utf-8")
    options.write.write_text(replaced(page, tables()), encoding="utf-8")
    print(f"written: {options.write}")


if __name__ == "__main__":
    main()
