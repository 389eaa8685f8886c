"""Deployment: MPC plays in a run's environment and records transitions, from which its models are refreshed concurrently.

replay.bin                       transitions (`jacrec.online.replay_buffer`)
models/                          refreshed models (`jacrec.online.published`)
deploy.json                      settings, episodes, versions in use; rewritten after every group of episodes
controller-000010.safetensors    state of the controller after the latest episode (here the tenth)
refresher.log                    output of the refreshing process
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from torch import Tensor

from jacrec.control.controller import MPC
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.contestant import digests, environment_record, expect_value_scale, open_env
from jacrec.evaluation.episodes import EpisodeLog, play
from jacrec.evaluation.records import record_differences
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import current_settings
from jacrec.online.config import DeployConfig
from jacrec.online.published import read_refreshes
from jacrec.online.refresh import Refresher, expect_refreshable
from jacrec.online.replay_buffer import OnlineReplay
from jacrec.online.wrappers import RecordingEnv, RefreshedController
from jacrec.training.run import Run, load_run, torch_threads
from jacrec.util.content import expect_content
from jacrec.util.files import read_json, user_path, write_json
from jacrec.util.signals import OrderlyExit
from jacrec.util.tensors import read_tensors, with_checksum, without_checksum, write_tensors

FILE = "deploy.json"

Progress = Callable[[float, str], None]


class DecisionTimes(TypedDict):
    """Decision times of a group of episodes."""

    median_ms: float
    p99_ms: float
    max_ms: float


DeployedEpisode = TypedDict(  # "return" cannot be a field of a class
    "DeployedEpisode",
    {
        "return": float,
        "score": float | None,
        "length": int,
        "version": int,
        "picked_up": list[list[int]],
        "decisions": DecisionTimes,
    },
)
"""what is read of the record of an episode"""


class DeployRecord(TypedDict):
    """The content of deploy.json."""

    settings: dict[str, Any]
    networks: dict[str, str]
    transitions: int
    late_steps: int
    notices: list[str]
    episodes: list[DeployedEpisode]


def deploy(
    run: Run | str | Path,
    config: DeployConfig | None = None,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Play `config.episodes` episodes while refreshing the models; the record, which is also written to `out`/deploy.json.

    An interrupted deployment is resumed with its replay buffer, its latest models, and the controller as it was after the last
    finished group of `rows` episodes; the interrupted group is played again from its start, and its transitions are dropped
    from the replay buffer. Without refreshing, actions and transitions are the same as without the interruption. The run's
    folder is only read.

    Args:
        out: folder of the deployment (default: the run's path with the suffix "-deploy").
        say: receives notices, one sentence each, possibly from another thread.
        progress: called with the fraction of episodes played and a short status.
        on_record: called with the record, refreshes included, after each group of episodes, and at the end.

    Raises:
        ValueError: `out` holds a run or another deployment; the environment is unknown or does not fit the run; a model cannot
            be refreshed. Nothing is written in these cases.
        FileNotFoundError: no trained run at that path.
    """
    run, config = run if isinstance(run, Run) else load_run(run), config or DeployConfig()
    run = replace(run, world=copy.deepcopy(run.world))  # its weights will be replaced
    folder = deployment_folder(run.path, out)
    expect_value_scale(run, [config.controller])
    expect_refreshable(run, config.online)  # before anything is written
    with OrderlyExit() as stack:
        env = open_env(run, config.play)
        stack.callback(env.close)
        fresh = _new_record(run, config, env)
        _previous(folder / FILE, fresh)  # before anything is written
        replay = stack.enter_context(OnlineReplay(folder, env.state_dim, env.action_dim, config.replay))
        record = _previous(folder / FILE, fresh)  # another process may have gone on until it released the lock
        if (folder / FILE).is_file():
            replay.keep(record["transitions"])
        if len(replay) or replay.found.torn_bytes or replay.found.dropped:
            say(f"the replay buffer holds {replay.found}")
        stack.enter_context(torch_threads(config.threads))
        mpc = MPC(run.policy, run.world, config.controller, batch=env.n)
        if record["episodes"]:
            mpc.load_state_dict(_load_controller(_controller_file(folder, record)))
        mpc.warm_up()
        refresher = stack.enter_context(Refresher(run, folder, config.online, say=say))
        write_json(folder / FILE, record)  # only now: all of the above has accepted the settings
        recorded, seeds = RecordingEnv(env, replay, config.step_seconds), config.play.seeds
        for done in range(len(record["episodes"]), len(seeds), env.n):
            controller = RefreshedController(mpc, refresher)
            started = refresher.version, recorded.late

            def report(share: float, done: int = done) -> None:
                if progress is not None:
                    progress((done + share * env.n) / len(seeds), f"{len(replay)} transitions, models {refresher.version}")

            played: Any = recorded  # a wrapper with the interface of BatchedEnv
            log = play(played, controller, seeds[done : done + env.n], progress=report)
            record["episodes"] += _episodes(log, run, controller, started[0])
            record["late_steps"] += recorded.late - started[1]
            record["notices"] += refresher.take_notices()
            replay.sync()  # before the record that counts them
            record["transitions"] = len(replay)
            _store(folder, record, mpc)
            if on_record is not None:
                on_record(record | {"refreshes": read_refreshes(folder)})
    record |= {"refreshes": read_refreshes(folder)}
    if on_record is not None:
        on_record(record)
    return record


def deployment_folder(run: Path, out: str | Path | None) -> Path:
    """The folder of a deployment.

    Raises:
        ValueError: it is the folder of a run, or inside the deployed run's folder.
    """
    folder = user_path(out) if out is not None else run.with_name(run.name + "-deploy")
    if (folder / "config.yaml").exists() or run.resolve() in folder.resolve().parents:
        raise ValueError(f"{folder}: expected a separate folder, got a run's folder or one inside it; choose another (--out)")
    return folder


def _episodes(log: EpisodeLog, run: Run, controller: RefreshedController, version: int) -> list[dict[str, Any]]:
    """Records of a group of episodes; decision times and versions are those of the group."""
    ms = 1e3 * np.array(controller.seconds)
    decisions = {
        "count": len(ms),
        "median_ms": float(np.median(ms)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "max_ms": float(ms.max()),
    }
    scores = run.info.score(log.returns, log.terminated)
    return [
        {
            "seed": seed,
            "return": log.returns[i],
            "score": None if scores is None else float(scores[i]),
            "length": log.lengths[i],
            "terminated": log.terminated[i],
            "version": version,
            "picked_up": controller.picked_up,
            "decisions": decisions,
        }
        for i, seed in enumerate(log.seeds)
    ]


def _store(folder: Path, record: dict[str, Any], mpc: MPC) -> None:
    """Write the controller, then the record that refers to it, and delete older controllers."""
    path, state = _controller_file(folder, record), mpc.state_dict()
    write_tensors(path, state, with_checksum(state, {}))
    write_json(folder / FILE, record)
    for old in folder.glob("controller-*.safetensors"):
        if old != path:
            old.unlink()


def _load_controller(path: Path) -> dict[str, Tensor]:
    remedy = "copy the file again, or start another deployment (--out)"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the controller's state after the latest episode, got no file; {remedy}")
    state, metadata = read_tensors(path, remedy)
    if without_checksum(state, metadata, path, remedy):
        raise ValueError(f"{path}: expected a controller's state, got another file; {remedy}")
    return state


def _controller_file(folder: Path, record: dict[str, Any]) -> Path:
    return folder / f"controller-{len(record['episodes']):06d}.safetensors"


def _new_record(run: Run, config: DeployConfig, env: BatchedEnv) -> dict[str, Any]:
    return {
        "settings": json.loads(json.dumps(asdict(config))),
        "run": str(run.path),
        "networks": digests(run),
        "environment": environment_record(env),
        "versions": versions(),
        "machine": machine(),
        "transitions": 0,
        "late_steps": 0,
        "notices": [],
        "episodes": [],
    }


def _previous(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record in `path`, which must have the same networks and settings except `episodes`; `fresh` if there is none."""
    if not path.is_file():
        return fresh
    remedy = "copy the file again, or choose another folder (--out)"
    old = read_json(path, DeployRecord, remedy)
    expect_content(old["settings"].get("mpc"), dict, path, remedy)
    # a deployment from before a setting was introduced was played with its default
    mpc = current_settings(old["settings"]["mpc"], f"{path}: mpc")
    defaults = json.loads(json.dumps(asdict(DeployConfig())))
    old["settings"] = defaults | old["settings"] | {"mpc": defaults["mpc"] | mpc}
    different = record_differences(old, fresh, ignored=("episodes",))
    if different:
        raise ValueError(
            f"{path}: expected no deployment or one with these settings, got one that differs in "
            f"{'; '.join(different)}. Choose another folder (--out)"
        )
    return old | {"settings": fresh["settings"]}
