"""The order of a compiled kernel's accesses to its scratch: no read between a write and the next barrier, nor the reverse.

python -m tests.triton_order        # every kernel's TTGIR, one JSON object a line
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

DEFINITION = re.compile(r"^(%[\w$.-]+)(?::\d+)? = (\S+)\s*(.*)$")
NAME = re.compile(r"%[\w$.-]+(?:#\d+)?")
INIT = re.compile(r"(%[\w$.-]+) = (%[\w$.-]+(?:#\d+)?)")
THROUGH = ("tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout", "tt.reshape")
"""operations whose result points where their first operand does"""
BARRIERS = ("ttg.barrier", "gpu.barrier")
TAPE = ("%slopes", "%hats", "%inv_std")
"""what the adjoint that recomputes writes and reads, besides the scratch"""
READS = ("ttg.async_copy_global_to_local", "tt.load")


class Access(NamedTuple):
    """A read, a store or a barrier."""

    line: int
    operation: str
    place: tuple[str, int] | None
    """argument and buffer; None for a barrier"""


@dataclass
class Block:
    """Operations in order; a loop is a block among them."""

    items: list["Access | Block"] = field(default_factory=list)
    loop: bool = False


class Kernel:
    """A kernel's TTGIR, as far as its pointers are concerned. `size`: elements of one scratch buffer."""

    def __init__(self, ttgir: str, size: int):
        self.size = size
        self.definitions: dict[str, tuple[str, str]] = {}
        self.arguments: set[str] = set()
        self.body = Block()
        stack = [self.body]
        for number, line in enumerate(ttgir.splitlines()):
            text = line.strip()
            if text.startswith("tt.func"):
                self.arguments = set(re.findall(r"(%[\w$.-]+): ", text))
            found = DEFINITION.match(text)
            name, operation, rest = found.groups() if found else ("", text.split(" ")[0], text.partition(" ")[2])
            if name:
                self.definitions[name] = operation, rest
            if text.startswith("}"):
                stack.pop()
            if text.endswith("{"):
                region = Block(loop=operation == "scf.for")
                stack[-1].items.append(region)
                stack.append(region)
            if operation == "scf.for":
                head = rest.split("iter_args(")[-1] if "iter_args(" in rest else ""
                self.definitions |= {own: ("copy", init) for own, init in INIT.findall(head.split(") ->")[0])}
            if operation == "tt.store" or operation in READS or operation in BARRIERS:
                # now: names are unique where they are visible, and used again by later regions
                place = None if operation in BARRIERS else self.place(NAME.findall(rest)[0])
                stack[-1].items.append(Access(number, operation, place))

    def constant(self, value: str) -> int:
        """The constant that an offset is, a scalar or all of a tensor; 0 for others."""
        operation, rest = self.definitions.get(value, ("", ""))
        if operation in THROUGH:
            return self.constant(NAME.findall(rest)[0])
        found = re.match(r"(?:dense<)?(-?\d+)>? ", rest) if operation == "arith.constant" else None
        return int(found.group(1)) if found else 0

    def place(self, pointer: str) -> tuple[str, int]:
        """The argument that a pointer derives from, and the buffer of `size` elements by the constants added to it."""
        offset = 0
        while pointer not in self.arguments:
            operation, rest = self.definitions[pointer.split("#")[0]]
            names = NAME.findall(rest)
            if operation == "tt.addptr":
                offset += self.constant(names[1])
            elif operation not in (*THROUGH, "copy"):
                raise ValueError(
                    f"pointer: expected one that derives from an argument, got {pointer} = {operation} {rest[:80]}"
                )
            pointer = names[0]
        return pointer, offset // self.size

    def accesses(self, block: Block | None = None) -> Iterator[Access]:
        """In order; loops twice, so that what one turn leaves meets the next one."""
        block = self.body if block is None else block
        for _ in range(1 + block.loop):
            for item in block.items:
                yield from (self.accesses(item) if isinstance(item, Block) else (item,))


def violations(kernel: Kernel, without: int | None = None) -> list[str]:
    """Reads of a scratch buffer between a store to it and the next barrier, and stores to it between a read and a barrier.

    without: the line of a barrier that is taken to be missing.
    """
    written: dict[tuple[str, int], int] = {}
    read: dict[tuple[str, int], int] = {}
    found = {}
    for number, operation, place in kernel.accesses():
        if number == without:
            continue
        if place is None:
            written.clear()
            read.clear()
            continue
        if place[0] in TAPE:
            place = place[0], 0
        elif place[0] != "%scratch":
            continue
        if operation == "tt.store":
            if place in read:
                found[number, read[place]] = (
                    f"line {number + 1} stores to buffer {place[1]} of {place[0]}, read in line {read[place] + 1}"
                )
            written[place] = number
        else:
            # a load in place takes other columns than the store before it; a copy takes all
            if (operation != "tt.load" or place[0] in TAPE) and place in written:
                found[number, written[place]] = (
                    f"line {number + 1} reads buffer {place[1]} of {place[0]}, stored in line {written[place] + 1}"
                )
            read[place] = number
    return list(found.values())


def main() -> None:
    """Compile small networks of every structure with several chunks to a layer, and print what was found."""
    from jacrec import DiffusionDynamics
    from jacrec.kernels import launch, rollout
    from tests.triton_ahead import ahead, launch_chains, launch_rollout

    tile = launch.Tile(rows=16, columns=32, inner=16, warps=4, stages=3)
    small = dict.fromkeys(launch.TILES, tile)
    compiled = []
    structures = [dict(hidden=(64, 64), layer_norm=True, residual=True)]
    if "--quick" not in sys.argv:
        structures += [dict(hidden=(64, 64, 64)), dict(hidden=(64, 64, 64), layer_norm=True, residual=True)]
    for network in structures:
        f = DiffusionDynamics(3, 2, steps=3, **network)
        with ahead("ttgir") as found:
            launch.TILES, kept = small, launch.TILES
            rollout.ROLLOUT_TILES, rollouts = (tile,), rollout.ROLLOUT_TILES
            try:
                launch_chains(f, 64, 3)
                launch_rollout(f, 1, 3, 2, batched=False, **network)
            finally:
                launch.TILES, rollout.ROLLOUT_TILES = kept, rollouts
        compiled += found.compiled
    for done in compiled:
        kernel = Kernel(done.asm["ttgir"], done.rows * 64)
        counted = list(kernel.accesses())
        barriers = sorted({number for number, operation, _ in counted if operation in BARRIERS})
        row = {"kernel": done.kernel, "violations": violations(kernel), "barriers": len(barriers)}
        row["copies"] = sum(place is not None and place[0] == "%scratch" and "async" in name for _, name, place in counted)
        row["buffers"] = len({place for _, _, place in counted if place is not None and place[0] == "%scratch"})
        row["needed"] = sum(bool(violations(kernel, number)) for number in barriers)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
