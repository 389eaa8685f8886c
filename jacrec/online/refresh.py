"""Concurrent refreshing of world model and reward model; the controller never waits for it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jacrec.online.config import RefreshConfig
from jacrec.online.hot_swap import HotSwap, Poller, Say
from jacrec.online.published import ALIVE, FOLDER, SETTINGS, clear_notice, read_notice
from jacrec.training.run import Run
from jacrec.util.files import user_path, write_json

LOG = "refresher.log"


def expect_refreshable(run: Run, config: RefreshConfig) -> None:
    """Check that the run's models can be refreshed, unless refreshing is disabled.

    Raises:
        ValueError: a multi-step world model is to be refreshed.
    """
    if config.enabled and run.config.dynamics.kind == "multistep" and "dynamics" in config.parts:
        raise ValueError(
            "online.parts: expected only reward for a multi-step world model, which cannot be trained on single transitions, "
            f"got {', '.join(config.parts)}"
        )


class Refresher:
    """Refreshes the models of a controller: a process trains, and a thread loads what the process publishes.

        with OnlineReplay(folder, d, m) as replay, Refresher(run, folder, config) as refresher:
            refresher.pick_up()                  # between two decisions; microseconds, or a copy of the weights
            action = controller.act(observation)
            ...
            replay.append(...)

    With config.enabled = False there is no process and no thread, and `pick_up` does nothing. A process that dies is restarted
    up to `restarts` times; after that, and while it is stalled, control continues with the current weights.

    Args:
        run: a trained run; its world's dynamics and reward model are changed in place, its folder is only read.
        folder: folder of the replay buffer. Models are published in `models/`, the output of the process is written to
            refresher.log. An already published version is installed immediately.
        config: settings (default: `RefreshConfig()`).
        say: receives notices, one sentence each, from another thread.
        command: command to run as the refreshing process; the folder and this process's id are appended.

    Raises:
        ValueError: a multi-step world model is to be refreshed, or a part is not a module.
    """

    COMMAND = (sys.executable, "-m", "jacrec.online.process")

    def __init__(
        self,
        run: Run,
        folder: str | Path,
        config: RefreshConfig | None = None,
        *,
        say: Say = print,
        command: Sequence[str] = COMMAND,
    ):
        self.run, self.folder, self.config = run, user_path(folder), config or RefreshConfig()
        self.command, self._say = command, say
        self._notices: list[str] = []
        self.process: subprocess.Popen | None = None
        self.restarts = 0
        self.hot_swap: HotSwap | None = None
        self._poller: Poller | None = None
        self._stalled = self._dead = False
        self._notice = ""
        if not self.config.enabled:
            return
        expect_refreshable(run, self.config)
        self.hot_swap = HotSwap(self.folder, run.world, self.say)
        self.hot_swap.poll()
        self.hot_swap.swap()
        settings = {"run": str(run.path.resolve()), "config": asdict(self.config)}
        write_json(self.folder / SETTINGS, settings)
        (self.folder / FOLDER).mkdir(exist_ok=True)
        self._start()
        self._poller = Poller(self._poll, self.config.poll_seconds, self.say)
        self._poller.start()

    @property
    def version(self) -> int:
        """Version of the models in use; 0: the run's own."""
        return self.hot_swap.version if self.hot_swap is not None else 0

    def pick_up(self) -> bool:
        """Install new weights if there are any; whether there were. Never waits."""
        return self.hot_swap is not None and self.hot_swap.swap()

    def say(self, sentence: str) -> None:
        """Report a notice, and keep it for `take_notices`."""
        self._notices.append(sentence)
        self._say(sentence)

    def take_notices(self) -> list[str]:
        """The notices since the last call."""
        count = len(self._notices)
        taken, self._notices[:count] = self._notices[:count], []
        return taken

    def close(self) -> None:
        """Stop thread and process; idempotent."""
        if self._poller is not None:
            self._poller.stop()
            self._poller = None
        if self.process is not None:
            # safe at any moment: published versions are complete, and an unfinished refresh is repeated later
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Refresher":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _start(self) -> None:
        clear_notice(self.folder)  # of an earlier process
        with (self.folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, str(self.folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must only reach the controller's process
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        os.setpriority(os.PRIO_PROCESS, self.process.pid, os.getpriority(os.PRIO_PROCESS, 0) + self.config.niceness)
        self._started = time.time()
        self._stalled = False

    def _poll(self) -> None:
        if self.hot_swap is not None:
            self.hot_swap.poll()
        if self.process is None or self._dead:
            return
        notice = read_notice(self.folder)
        if notice and notice != self._notice:
            self._notice = notice
            self.say(f"refreshing: {notice}")
        code = self.process.poll()
        if code is not None:
            again = self.restarts < self.config.restarts
            self.say(
                f"the refreshing process has ended (exit code {code}, see {self.folder / LOG}); control continues with "
                f"version {self.version} of the models" + (", and the process is restarted" if again else "")
            )
            if again:
                self.restarts += 1
                self._start()
            else:
                self._dead = True
        elif not self._stalled and self._silence() > self.config.stalled_seconds:
            self._stalled = True
            self.say(
                f"the refreshing process (pid {self.process.pid}) has shown no sign of life for {self._silence():.0f} s; control "
                f"continues with version {self.version} of the models"
            )

    def _silence(self) -> float:
        """Seconds since the last heartbeat of the process."""
        try:
            shown = (self.folder / FOLDER / ALIVE).stat().st_mtime
        except FileNotFoundError:
            shown = 0.0
        return time.time() - max(shown, self._started)
