"""A deployment: MPC plays in a run's environment, keeps what happens, and its models are refreshed from it meanwhile.

replay.bin                       what happened (`jacrec.online.replay`)
models/                          refreshed models (`jacrec.online.published`)
deploy.json                      settings, episodes, versions picked up; replaced after every group of episodes
controller-000010.safetensors    the controller after the latest of them, here ten
refresher.log                    what the refreshing process had to say
"""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from jacrec.control.controller import MPC
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.contestant import digests, environment_record, open_env
from jacrec.evaluation.episodes import EpisodeLog, play
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import ExperimentalConfig, current_settings
from jacrec.online.config import DeployConfig
from jacrec.online.playing import RecordedEnv, RefreshedController
from jacrec.online.published import refreshes
from jacrec.online.refresh import Refresher, expect_refreshable
from jacrec.online.replay import OnlineReplay
from jacrec.training.run import Run, load_run, torch_threads
from jacrec.util.files import atomic_write, write_json

FILE = "deploy.json"

Progress = Callable[[float, str], None]


def deploy(
    run: Run | str | Path,
    config: DeployConfig | None = None,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Play `config.episodes` episodes, refreshing the models meanwhile; the record, which is also in `out`/deploy.json.

    A deployment that was ended, in whatever way, goes on: with its replay, its latest models and the controller as it was
    after the last finished group of `rows` episodes; the group under way then is played again from its beginning. Without
    refreshing this gives the same actions as if it had never been ended. The run is only read.

    Args:
        out: the deployment's own folder; the run's with "-deploy" behind its name unless told.
        say: gets notices, a sentence each, some from another thread.
        progress: called with the share of the episodes played and a few words.

    Raises:
        ValueError: `out` holds a run or another deployment; no environment is known, or it is another one's; a model that
            cannot be refreshed. Nothing is recorded then.
        FileNotFoundError: no trained run at that path.
    """
    run, config = run if isinstance(run, Run) else load_run(run), config or DeployConfig()
    run = replace(run, world=copy.deepcopy(run.world))  # the weights in it are going to change
    folder = deployment_folder(run.path, out)
    expect_refreshable(run, config.online)  # before anything is written that other settings would differ from
    with contextlib.ExitStack() as stack:
        env = open_env(run, config.play)
        stack.callback(env.close)
        record = _previous(folder / FILE, _new_record(run, config, env))
        replay = stack.enter_context(OnlineReplay(folder, env.state_dim, env.action_dim, config.replay))
        if len(replay) or replay.found.torn_bytes:
            say(f"the replay holds {replay.found}")
        stack.enter_context(torch_threads(config.threads))
        mpc = MPC(run.policy, run.world, config.controller, batch=env.n)
        if record["episodes"]:
            mpc.load_state_dict(load_file(_controller_file(folder, record)))
        mpc.warm_up()
        refresher = stack.enter_context(Refresher(run, folder, config.online, say=say))
        write_json(folder / FILE, record)  # with settings that all of the above has taken
        recorded, seeds = RecordedEnv(env, replay, config.step_seconds), config.play.seeds
        for done in range(len(record["episodes"]), len(seeds), env.n):
            controller = RefreshedController(mpc, refresher)
            started = refresher.version, recorded.late

            def tell(share: float, done: int = done) -> None:
                if progress is not None:
                    progress((done + share * env.n) / len(seeds), f"{len(replay)} transitions, models {refresher.version}")

            # what play asks of an environment, this one answers
            played: Any = recorded
            log = play(played, controller, seeds[done : done + env.n], progress=tell)
            record["episodes"] += _episodes(log, run, controller, started[0])
            record["late_steps"] += recorded.late - started[1]
            record["notices"] += refresher.take_notices()
            record["transitions"] = len(replay)
            _store(folder, record, mpc)
    return record | {"refreshes": refreshes(folder)}


def deployment_folder(run: Path, out: str | Path | None) -> Path:
    """Where a deployment goes.

    Raises:
        ValueError: a run is there, or it is inside of the deployed run.
    """
    folder = Path(out) if out is not None else run.with_name(run.name + "-deploy")
    if (folder / "config.yaml").exists() or run.resolve() in folder.resolve().parents:
        raise ValueError(f"{folder}: expected a folder of the deployment's own, got a run's or one in it; choose another")
    return folder


def _episodes(log: EpisodeLog, run: Run, controller: RefreshedController, version: int) -> list[dict[str, Any]]:
    """What a group of episodes came to; decisions and versions are the group's."""
    ms = 1e3 * np.array(controller.seconds)
    decisions = {
        "count": len(ms),
        "median_ms": float(np.median(ms)),
        "p99_ms": float(np.quantile(ms, 0.99)),
        "max_ms": float(ms.max()),
    }
    scores = run.info.score(log.returns)
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
    """The controller first: the record says which one is its own."""
    path = _controller_file(folder, record)
    with atomic_write(path) as part:
        save_file(mpc.state_dict(), part)
    write_json(folder / FILE, record)
    for old in folder.glob("controller-*.safetensors"):
        if old != path:
            old.unlink()


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
    """The record in `path` if it is of the same run and settings, or `fresh` where there is none; episodes may be added."""
    if not path.is_file():
        return fresh
    old = json.loads(path.read_text(encoding="utf-8"))
    # a deployment from before a setting was introduced was played with its default
    mpc = current_settings(old["settings"]["mpc"], f"{path}: mpc")
    old["settings"] = {"experimental": asdict(ExperimentalConfig())} | old["settings"] | {"mpc": mpc}
    differing = [
        f"{part}.{key}: {old[part].get(key)} there, {value} here"
        for part in ("settings", "networks")
        for key, value in fresh[part].items()
        if key != "episodes" and old[part].get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{path}: expected no deployment or one with these settings, got one that differs in "
            f"{'; '.join(differing)}. Choose another folder (--out)"
        )
    return old | {"settings": fresh["settings"]}
