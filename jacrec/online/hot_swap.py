"""New weights into a world in use: read by a thread, put in place between two decisions."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jacrec.models.world import World
from jacrec.online.config import PARTS
from jacrec.online.published import latest_version, version_folder

Say = Callable[[str], None]


class Pickup:
    """The published versions of a folder on their way into `world`'s dynamics and reward model.

    `look` may take its time and is for another thread; `swap` is for the one that decides, between two decisions. The
    parameters change in place: nothing that knows them, compiled kernels included, has to be told.
    """

    def __init__(self, folder: Path, world: World, say: Say):
        self.folder, self.say = folder, say
        self.modules: dict[str, nn.Module] = {name: _module(world, name) for name in PARTS}
        self.version = 0
        """in place now; 0: the run's own models"""
        self.swap_seconds: list[float] = []
        """what each swap took"""
        self.pending: tuple[int, list[tuple[Tensor, Tensor]]] | None = None
        self._seen = 0

    def look(self) -> None:
        """Read the latest version where it is a new one.

        Raises:
            ValueError: it is of other networks, or of other scales.
        """
        version = latest_version(self.folder)
        if version == self._seen:
            return
        try:
            stored = {name: load_file(version_folder(self.folder, version) / f"{name}.safetensors") for name in self.modules}
        except FileNotFoundError:  # a yet newer one has taken its place
            return
        self._seen = version
        self.pending = version, [pair for name, module in self.modules.items() for pair in _pairs(name, module, stored[name])]

    @torch.no_grad()
    def swap(self) -> bool:
        """Put in place what has been read; whether there was anything."""
        pending, self.pending = self.pending, None
        if pending is None:
            return False
        began = time.perf_counter()
        for here, new in pending[1]:
            here.copy_(new)
        self.version = pending[0]
        self.swap_seconds.append(time.perf_counter() - began)
        return True


def _pairs(part: str, module: nn.Module, stored: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(parameter in use, new value on its device) of the whole module, whose buffers have to be equal already."""
    here = module.state_dict(keep_vars=True)
    if {k: (v.shape, v.dtype) for k, v in here.items()} != {k: (v.shape, v.dtype) for k, v in stored.items()}:
        raise ValueError(f"{part}: expected a refreshed version of the model in use, got one of other shapes: not used")
    parameters = {k for k, _ in module.named_parameters()}
    if any(not torch.equal(v.cpu(), stored[k]) for k, v in here.items() if k not in parameters):
        raise ValueError(f"{part}: expected a refreshed version with the scales of the model in use, got others: not used")
    return [(here[k], stored[k].to(here[k].device)) for k in parameters]


def _module(world: World, name: str) -> nn.Module:
    part = getattr(world, name)
    if not isinstance(part, nn.Module):
        raise ValueError(f"World.{name}: expected a torch.nn.Module, whose weights can be refreshed, got {type(part).__name__}")
    return part


class Watch(threading.Thread):
    """Calls `look` again and again until stopped; what goes wrong there is said, each thing once, and control goes on."""

    def __init__(self, look: Callable[[], None], every: float, say: Say):
        super().__init__(name="refresh", daemon=True)
        self.look, self.every, self.say = look, every, say
        self.over = threading.Event()
        self.said: set[str] = set()

    def run(self) -> None:
        """The thread's work."""
        while not self.over.wait(self.every):
            try:
                self.look()
            except Exception as error:
                if str(error) not in self.said:
                    self.said.add(str(error))
                    self.say(f"refreshing: {error}")

    def stop(self) -> None:
        """End, after the look that is under way."""
        self.over.set()
        self.join()
