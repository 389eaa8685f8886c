"""Executor that runs jobs on a Ray cluster."""

import logging
import os
import socket
import time
from typing import Any

from jacrec.studies.executors import GRACE, THREAD_VARIABLES, Executor, Failed, Finished, Message, perform
from jacrec.studies.jobs import Job


class RayExecutor(Executor):
    """Runs jobs as Ray tasks. Ray reuses its worker processes, so each of them imports jacrec once.

    Results and data are read and written on a file system that all machines share.

    Args:
        address: of a running cluster ("auto": the one this machine belongs to); None: start a cluster on this machine that
            ends with the sweep.
        workers: maximum number of concurrent tasks (default: as many as the cluster's processors allow).
        threads: processors per job.
        gpus: fraction of a GPU per job, for training on "cuda".

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, threads: int = 1, gpus: float = 0.0):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default: leave GPUs visible
        try:
            import ray
        except ImportError as error:
            raise ValueError(f"ray: expected an installed package, got {error}; pip install 'jacrec[cluster]'") from None
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
        options["runtime_env"] = {"env_vars": _worker_environment(threads)}
        self.task = ray.remote(**options)(_perform)
        self.running: dict[Any, tuple[Job, float]] = {}

    @property
    def slots(self) -> int:
        """How many jobs the cluster can currently run at once."""
        available = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // self.threads)
        return min(available, self.workers or available)

    def submit(self, job: Job) -> None:
        """Submit a job to the cluster."""
        self.running[self.task.remote(job)] = job, time.perf_counter()

    def wait(self, seconds: float) -> list[Message]:
        """Messages of the tasks that have ended."""
        if not self.running:
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=seconds)
        return [self._message(ref, *self.running.pop(ref)) for ref in ready]

    def close(self) -> None:
        """Interrupt the tasks, wait for their checkpoints, and disconnect."""
        for ref in self.running:
            self.ray.cancel(ref)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE)
        self.running.clear()
        self.ray.shutdown()

    def _message(self, ref: Any, job: Job, began: float) -> Finished | Failed:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the task's process or machine has died
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return Failed(job.id, f"the worker ended ({why})", str(error), time.perf_counter() - began, "ray")


def _perform(job: Job) -> Finished | Failed:
    return perform(job, f"{socket.gethostname()}:{os.getpid()}", _ignore_progress)


def _expect_listener(address: str) -> None:
    """Raise ValueError if nothing listens at host:port; Ray itself would retry for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto", resolved by Ray
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"--ray-address {address}: expected a running Ray cluster, got none ({error.strerror or error}); "
            "start one with `ray start --head`"
        ) from None


def _ignore_progress(share: float) -> None:
    """Ray tasks report only their end."""


def _worker_environment(threads: int) -> dict[str, str]:
    """Environment variables of the workers: number of threads, and the locations of data and packages."""
    passed = {name: os.environ[name] for name in ("MINARI_DATASETS_PATH", "PYTHONPATH", "MUJOCO_GL") if name in os.environ}
    return passed | dict.fromkeys(THREAD_VARIABLES, str(threads))
