"""World model and reward model trained further beside a controller that never waits for it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jacrec.online.config import RefreshConfig
from jacrec.online.hot_swap import Pickup, Say, Watch
from jacrec.online.published import ALIVE, FOLDER, SETTINGS, forget_notice, read_notice
from jacrec.training.run import Run
from jacrec.util.files import write_json

LOG = "refresher.log"


def expect_refreshable(run: Run, config: RefreshConfig) -> None:
    """Whether the run's models can be refreshed as told; always, where refreshing is off.

    Raises:
        ValueError: a multi-step world model is to be refreshed.
    """
    if config.enabled and run.config.dynamics.kind == "multistep" and "dynamics" in config.parts:
        raise ValueError(
            "online.parts: expected reward alone for a multi-step world model, which is not trained on single "
            f"transitions, got {', '.join(config.parts)}"
        )


class Refresher:
    """The refreshing beside a controller: a process that trains, a thread that reads what it publishes.

        with OnlineReplay(folder, d, m) as replay, Refresher(run, folder, config) as refresher:
            refresher.pick_up()                  # between two decisions; microseconds, or a copy of the weights
            action = controller.act(observation)
            ...
            replay.append(...)

    With config.enabled = False neither exists and `pick_up` does nothing. A process that dies is noticed and started again
    `restarts` times; after that, and while it hangs, control goes on with the weights that are in place.

    Args:
        run: a trained run, whose world's dynamics and reward model are changed in place, and whose folder is only read.
        folder: of the replay; the models go to its `models/`, the process's own words to its refresher.log. Versions that are
            there already are put in place at once.
        say: gets each notice, a sentence; from another thread.
        command: what to start instead of the refreshing process; it gets the folder and this process's number.

    Raises:
        ValueError: a multi-step world model, or parts that are no modules.
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
        self.run, self.folder, self.config = run, Path(folder), config or RefreshConfig()
        self.command, self._say = command, say
        self._notices: list[str] = []
        self.process: subprocess.Popen | None = None
        self.restarts = 0
        self.pickup: Pickup | None = None
        self._watch: Watch | None = None
        self._stalled = self._gone = False
        self._notice = ""
        if not self.config.enabled:
            return
        expect_refreshable(run, self.config)
        self.pickup = Pickup(self.folder, run.world, self.say)
        self.pickup.look()
        self.pickup.swap()
        settings = {"run": str(run.path.resolve()), "config": asdict(self.config)}
        write_json(self.folder / SETTINGS, settings)
        (self.folder / FOLDER).mkdir(exist_ok=True)
        self._start()
        self._watch = Watch(self._look, self.config.poll_seconds, self.say)
        self._watch.start()

    @property
    def version(self) -> int:
        """Of the models in place; 0: the run's own."""
        return self.pickup.version if self.pickup is not None else 0

    def pick_up(self) -> bool:
        """Put new weights in place where there are any; whether there were. Never waits."""
        return self.pickup is not None and self.pickup.swap()

    def say(self, sentence: str) -> None:
        """Pass a notice on, and keep it."""
        self._notices.append(sentence)
        self._say(sentence)

    def take_notices(self) -> list[str]:
        """What has been said since the last call."""
        count = len(self._notices)
        taken, self._notices[:count] = self._notices[:count], []
        return taken

    def close(self) -> None:
        """End thread and process; a second time does nothing."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self.process is not None:
            # what it was at is repeated next time; all that it has published is whole
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Refresher":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _start(self) -> None:
        forget_notice(self.folder)  # of an earlier process
        with (self.folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, str(self.folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interruption from the keyboard is for this process
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        os.setpriority(os.PRIO_PROCESS, self.process.pid, os.getpriority(os.PRIO_PROCESS, 0) + self.config.niceness)
        self._started = time.time()
        self._stalled = False

    def _look(self) -> None:
        if self.pickup is not None:
            self.pickup.look()
        if self.process is None or self._gone:
            return
        notice = read_notice(self.folder)
        if notice and notice != self._notice:
            self._notice = notice
            self.say(f"refreshing: {notice}")
        code = self.process.poll()
        if code is not None:
            again = self.restarts < self.config.restarts
            self.say(
                f"the refreshing process has ended (exit code {code}, see {self.folder / LOG}); control goes on with "
                f"version {self.version} of the models" + (", and it is started again" if again else "")
            )
            if again:
                self.restarts += 1
                self._start()
            else:
                self._gone = True
        elif not self._stalled and self._silence() > self.config.stalled_seconds:
            self._stalled = True
            self.say(
                f"the refreshing process (number {self.process.pid}) has been silent for {self._silence():.0f} s; control "
                f"goes on with version {self.version} of the models"
            )

    def _silence(self) -> float:
        """Seconds since the process showed itself."""
        try:
            shown = (self.folder / FOLDER / ALIVE).stat().st_mtime
        except FileNotFoundError:
            shown = 0.0
        return time.time() - max(shown, self._started)
