"""Deployment: MPC plays in a run's environment and records transitions, from which its models are refreshed concurrently.

replay.bin                       transitions (`jacrec.online.replay_buffer`)
models/                          refreshed models (`jacrec.online.published`)
deploy.json                      settings, episodes, versions in use; rewritten after every group of episodes
controller-000010.safetensors    state of the controller, or of all candidates, after the latest episode (here the tenth)
refresher.log                    output of the refreshing process
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from jacrec.control.controller import MPC, MPCConfig
from jacrec.envs.batch import BatchedEnv
from jacrec.evaluation.contestant import digests, environment_record, expect_value_scale, open_env
from jacrec.evaluation.episodes import Controller, EpisodeLog, PolicyController, play
from jacrec.evaluation.records import record_differences
from jacrec.evaluation.tuning import BASE
from jacrec.evaluation.versions import machine, versions
from jacrec.experimental.config import current_settings
from jacrec.online.config import DeployConfig
from jacrec.online.published import read_refreshes
from jacrec.online.race import DeployedRace, RaceRecord
from jacrec.online.refresh import Refresher, expect_refreshable
from jacrec.online.replay_buffer import OnlineReplay
from jacrec.online.wrappers import RecordingEnv, RefreshedController
from jacrec.training.run import Run, load_run, torch_threads
from jacrec.util.content import expect_content
from jacrec.util.files import read_json, user_path, write_json
from jacrec.util.signals import OrderlyExit
from jacrec.util.tensors import read_tensors, with_checksum, without_checksum, write_tensors

FILE = "deploy.json"
ALONE = "mpc"
"""name of the controller of a deployment without a race"""
REMEDY = "copy the file again, or choose another folder (--out)"

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
        "player": NotRequired[str],
        "lost": NotRequired[float],
        "allowance": NotRequired[float],
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
    race: NotRequired[RaceRecord]


def deploy(
    run: Run | str | Path,
    config: DeployConfig | None = None,
    *,
    candidates: Mapping[str, MPCConfig] | None = None,
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
        candidates: settings of controllers by name, which race against the base policy instead of `config.mpc`
            (`jacrec.online.race`); the models that are refreshed are those of all. None: no race.
        out: folder of the deployment (default: the run's path with the suffix "-deploy").
        say: receives notices, one sentence each, possibly from another thread.
        progress: called with the fraction of episodes played and a short status.
        on_record: called with the record, refreshes included, after each group of episodes, and at the end.

    Raises:
        ValueError: `out` holds a run or another deployment; the environment is unknown or does not fit the run; a model cannot
            be refreshed; settings that do not go with a race. Nothing is written in these cases.
        FileNotFoundError: no trained run at that path.
    """
    run, config = run if isinstance(run, Run) else load_run(run), config or DeployConfig()
    run = replace(run, world=copy.deepcopy(run.world))  # its weights will be replaced
    folder = deployment_folder(run.path, out)
    expect_race(config, candidates)
    settings = {ALONE: config.controller} if candidates is None else dict(candidates)
    expect_value_scale(run, settings.values())
    expect_refreshable(run, config.online)  # before anything is written
    with OrderlyExit() as stack:
        env = open_env(run, config.play)
        stack.callback(env.close)
        fresh = _new_record(run, config, candidates, env)
        _previous(folder / FILE, fresh)  # before anything is written
        replay = stack.enter_context(OnlineReplay(folder, env.state_dim, env.action_dim, config.replay))
        record = _previous(folder / FILE, fresh)  # another process may have gone on until it released the lock
        if (folder / FILE).is_file():
            replay.keep(record["transitions"])
        if len(replay) or replay.found.torn_bytes or replay.found.dropped:
            say(f"the replay buffer holds {replay.found}")
        stack.enter_context(torch_threads(config.threads))
        race = None if candidates is None else _resumed_race(config, record, folder / FILE)
        thinking = {name: MPC(run.policy, run.world, own, batch=env.n) for name, own in settings.items()}
        players: dict[str, Controller] = {BASE: PolicyController(run.policy), **thinking}
        if record["episodes"]:
            _load_controllers(_controller_file(folder, record), thinking)
        for mpc in thinking.values():
            mpc.warm_up()
        refresher = stack.enter_context(Refresher(run, folder, config.online, say=say))
        write_json(folder / FILE, record)  # only now: all of the above has accepted the settings
        recorded, seeds = RecordingEnv(env, replay, config.step_seconds), config.play.seeds
        for done in range(len(record["episodes"]), len(seeds), env.n):
            name, first = (ALONE, done) if race is None else (race.player, race.start)
            controller = RefreshedController(players[name], refresher)
            started = refresher.version, recorded.late

            def report(share: float, done: int = done, name: str = name) -> None:
                if progress is not None:
                    who = "" if race is None else f", {name}"
                    note = f"{len(replay)} transitions, models {refresher.version}{who}"
                    progress((done + share * env.n) / len(seeds), note)

            played: Any = recorded  # a wrapper with the interface of BatchedEnv
            log = play(played, controller, seeds[first : first + env.n], progress=report)
            record["episodes"] += _episodes(log, run, controller, started[0])
            record["late_steps"] += recorded.late - started[1]
            record["notices"] += refresher.take_notices()
            if race is not None:
                for sentence in race.played(log.returns[0]):
                    say(sentence)
                record["race"] = race.record()
                record["episodes"][-1] |= {"player": name, "lost": race.lost, "allowance": race.granted}
            replay.sync()  # before the record that counts them
            record["transitions"] = len(replay)
            _store(folder, record, thinking)
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


def expect_race(config: DeployConfig, candidates: Mapping[str, MPCConfig] | None) -> None:
    """Raise ValueError unless a deployment's settings go with its candidates, or with none."""
    default = DeployConfig()
    if candidates is None:
        if config.race_allowance != default.race_allowance:
            raise ValueError(
                f"race_allowance: expected it with a race alone, got {config.race_allowance}; race candidates (--race)"
            )
        return
    if config.controller != default.controller:
        raise ValueError(
            f"race: expected no settings of mpc beside it, since the candidates have their own, got {config.controller}; name them "
            "in a file of candidates"
        )
    if config.rows != 1:
        raise ValueError(f"rows: expected 1 in a race, whose episodes are played one by one, got {config.rows}")
    DeployedRace(list(candidates), config.race_allowance)  # checks them


def _resumed_race(config: DeployConfig, record: dict[str, Any], path: Path) -> DeployedRace:
    """The race after the episodes of a record, which must be those that it asks for; what follows from them is recorded anew."""
    race = DeployedRace(list(record["settings"]["candidates"]), config.race_allowance)
    for i, episode in enumerate(record["episodes"]):
        if episode.get("player") != race.player:
            raise ValueError(
                f"{path}: expected {race.player!r} at episodes[{i}].player, as the returns before decide, got "
                f"{episode.get('player')!r}; {REMEDY}"
            )
        race.played(episode["return"])
        episode |= {"lost": race.lost, "allowance": race.granted}
    if record["episodes"]:
        record["race"] = race.record()
    return race


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


def _store(folder: Path, record: dict[str, Any], thinking: Mapping[str, MPC]) -> None:
    """Write the controllers, then the record that refers to them, and delete older ones."""
    path = _controller_file(folder, record)
    state = {_prefix(name) + key: x for name, mpc in thinking.items() for key, x in mpc.state_dict().items()}
    write_tensors(path, state, with_checksum(state, {}))
    write_json(folder / FILE, record)
    for old in folder.glob("controller-*.safetensors"):
        if old != path:
            old.unlink()


def _load_controllers(path: Path, thinking: Mapping[str, MPC]) -> None:
    remedy = "copy the file again, or start another deployment (--out)"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the controller's state after the latest episode, got no file; {remedy}")
    state, metadata = read_tensors(path, remedy)
    if without_checksum(state, metadata, path, remedy):
        raise ValueError(f"{path}: expected a controller's state, got another file; {remedy}")
    for name, mpc in thinking.items():
        mpc.load_state_dict({key.removeprefix(_prefix(name)): x for key, x in state.items() if _owner(key) == name})


def _prefix(name: str) -> str:
    """What precedes the names of a controller's tensors in a file."""
    return "" if name == ALONE else f"{name}/"


def _owner(key: str) -> str:
    """The controller that a tensor in a file belongs to."""
    name, slash, _ = key.rpartition("/")
    return name if slash else ALONE


def _controller_file(folder: Path, record: dict[str, Any]) -> Path:
    return folder / f"controller-{len(record['episodes']):06d}.safetensors"


def _new_record(run: Run, config: DeployConfig, candidates: Mapping[str, MPCConfig] | None, env: BatchedEnv) -> dict[str, Any]:
    racing = None if candidates is None else {name: asdict(own) for name, own in candidates.items()}
    return {
        "settings": json.loads(json.dumps(asdict(config) | {"candidates": racing})),
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
    old = read_json(path, DeployRecord, REMEDY)
    expect_content(old["settings"].get("mpc"), dict, path, REMEDY)
    # a deployment from before a setting was introduced was played with its default
    defaults = json.loads(json.dumps(asdict(DeployConfig()))) | {"candidates": None}
    settings = defaults | old["settings"]
    expect_content(settings["candidates"], dict[str, dict] | None, path, REMEDY)

    def current(own: dict[str, Any], name: str) -> dict[str, Any]:
        return defaults["mpc"] | current_settings(own, f"{path}: {name}")

    candidates = settings["candidates"]
    candidates = None if candidates is None else {name: current(own, name) for name, own in candidates.items()}
    old["settings"] = settings | {"mpc": current(settings["mpc"], "mpc"), "candidates": candidates}
    different = record_differences(old, fresh, ignored=("episodes",))
    if different:
        raise ValueError(
            f"{path}: expected no deployment or one with these settings, got one that differs in "
            f"{'; '.join(different)}. Choose another folder (--out)"
        )
    return old | {"settings": fresh["settings"] | {"candidates": candidates}}  # in the order in which they have raced
