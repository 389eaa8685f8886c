"""Hot swap of model weights: a thread loads published versions, which are installed between two decisions."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from jacrec.models.io import read_network
from jacrec.models.world import World
from jacrec.online.config import PARTS
from jacrec.online.published import latest_version, version_folder

Say = Callable[[str], None]


class HotSwap:
    """Loads the published versions in a folder into `world`'s dynamics and reward model.

    `poll` may be slow and is called by a background thread; `swap` is called by the controller's thread between two decisions.
    Parameters are changed in place, so everything that refers to them, including compiled kernels, stays valid.
    """

    def __init__(self, folder: Path, world: World, say: Say):
        self.folder, self.say = folder, say
        self.modules: dict[str, nn.Module] = {name: _module(world, name) for name in PARTS}
        self.version = 0
        """the version in use; 0: the run's own models"""
        self.swap_seconds: list[float] = []
        """durations of the swaps"""
        self.pending: tuple[int, list[tuple[Tensor, Tensor]]] | None = None
        self._seen = 0

    def poll(self) -> None:
        """Load the latest version if it is new.

        Raises:
            ValueError: its networks are damaged, or have other shapes or scales.
        """
        version = latest_version(self.folder)
        if version == self._seen:
            return
        try:
            folder = version_folder(self.folder, version)
            stored = {name: read_network(folder / f"{name}.safetensors")[1] for name in self.modules}
        except FileNotFoundError:  # already replaced by a newer version
            return
        self._seen = version
        self.pending = version, [pair for name, module in self.modules.items() for pair in _pairs(name, module, stored[name])]

    @torch.no_grad()
    def swap(self) -> bool:
        """Install the loaded version; whether there was one."""
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
    """(parameter in use, new value on its device) for all parameters; the buffers must be equal."""
    here = module.state_dict(keep_vars=True)
    if {k: (v.shape, v.dtype) for k, v in here.items()} != {k: (v.shape, v.dtype) for k, v in stored.items()}:
        raise ValueError(f"{part}: expected a version with the shapes of the model in use, got other shapes; it is ignored")
    parameters = {k for k, _ in module.named_parameters()}
    if any(not torch.equal(v.cpu(), stored[k]) for k, v in here.items() if k not in parameters):
        raise ValueError(f"{part}: expected a version with the scales of the model in use, got other scales; it is ignored")
    return [(here[k], stored[k].to(here[k].device)) for k in parameters]


def _module(world: World, name: str) -> nn.Module:
    part = getattr(world, name)
    if not isinstance(part, nn.Module):
        raise ValueError(f"World.{name}: expected a torch.nn.Module with refreshable weights, got {type(part).__name__}")
    return part


class Poller(threading.Thread):
    """Calls `poll` periodically until stopped; each distinct error is reported once."""

    def __init__(self, poll: Callable[[], None], every: float, say: Say):
        super().__init__(name="refresh", daemon=True)
        self.poll, self.every, self.say = poll, every, say
        self.stopped = threading.Event()
        self.reported: set[str] = set()

    def run(self) -> None:
        """Main function of the thread."""
        while not self.stopped.wait(self.every):
            try:
                self.poll()
            except Exception as error:
                if str(error) not in self.reported:
                    self.reported.add(str(error))
                    self.say(f"refreshing: {error}")

    def stop(self) -> None:
        """Stop after the current call."""
        self.stopped.set()
        self.join()
