"""A Ray cluster as the executor: this machine alone, or every machine of a cluster that sees the study's folder.

RayExecutor(address, threads=1, gpus=0.0)
"""

import logging
import os
import socket
import time
from typing import Any

from jacrec.studies.executors import GRACE, THREAD_VARIABLES, Executor, Failed, Finished, Message, perform
from jacrec.studies.jobs import Job


class RayExecutor(Executor):
    """Jobs as Ray tasks of `threads` processors each; Ray reuses its worker processes, so that each imports once.

    Results travel through the study's folder, which all machines have to share; so do the data.

    Args:
        address: of a running cluster ("auto": the one that this machine belongs to); None: a cluster of this machine's own,
            which ends with the sweep.
        workers: tasks side by side; as many as the cluster's processors serve unless told.
        threads: processors of a job.
        gpus: share of a GPU of a job, for trainings on "cuda".

    Raises:
        ValueError: Ray is not installed, or no cluster is at the address.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, threads: int = 1, gpus: float = 0.0):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own choice from now on: leave GPUs visible
        try:
            import ray
        except ImportError as error:
            raise ValueError(f"ray: expected it installed, got {error}; pip install 'jacrec[cluster]'") from None
        self.ray: Any = ray
        if address:
            _expect_listener(address)
        own: dict[str, Any] = (
            {"address": address} if address else {"num_cpus": (workers or 0) * threads or None, "include_dashboard": False}
        )
        try:
            ray.init(**own, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except ConnectionError as error:
            raise ValueError(f"--ray-address {address}: expected a running Ray cluster, got none ({error})") from None
        self.workers, self.threads = workers, threads
        options: dict[str, Any] = dict(num_cpus=threads, num_gpus=gpus, max_retries=0)
        options["runtime_env"] = {"env_vars": _environment(threads)}
        self.task = ray.remote(**options)(_perform)
        self.running: dict[Any, tuple[Job, float]] = {}

    @property
    def slots(self) -> int:
        """How many jobs the cluster takes now."""
        there = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // self.threads)
        return min(there, self.workers or there)

    def submit(self, job: Job) -> None:
        """Hand a job to the cluster."""
        self.running[self.task.remote(job)] = job, time.perf_counter()

    def wait(self, seconds: float) -> list[Message]:
        """The tasks that have ended."""
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=seconds)
        return [self._message(ref, *self.running.pop(ref)) for ref in ready]

    def close(self) -> None:
        """Interrupt the tasks, wait for their checkpoints, leave the cluster."""
        for ref in self.running:
            self.ray.cancel(ref)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE)
        self.running.clear()
        self.ray.shutdown()

    def _message(self, ref: Any, job: Job, began: float) -> Finished | Failed:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the task's process or machine is gone
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return Failed(job.id, f"the worker ended ({why})", str(error), time.perf_counter() - began, "ray")


def _perform(job: Job) -> Finished | Failed:
    return perform(job, f"{socket.gethostname()}:{os.getpid()}", _silent)


def _expect_listener(address: str) -> None:
    """Raise ValueError where nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto", which Ray looks up
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"--ray-address {address}: expected a running Ray cluster, got none ({error.strerror or error}); "
            "start one with `ray start --head`"
        ) from None


def _silent(share: float) -> None:
    """Ray's tasks answer once, at their end."""


def _environment(threads: int) -> dict[str, str]:
    """What workers find in their environment: threads, and where data and packages lie on a cluster alike."""
    passed = {name: os.environ[name] for name in ("MINARI_DATASETS_PATH", "PYTHONPATH", "MUJOCO_GL") if name in os.environ}
    return passed | dict.fromkeys(THREAD_VARIABLES, str(threads))
