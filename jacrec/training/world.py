"""A world for a policy and a critic that were trained elsewhere: the world model and the reward model alone are trained."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jacrec.data.transitions import Transitions, expect_transitions
from jacrec.engine.admission import admit
from jacrec.models.io import load_module, save_module
from jacrec.models.networks import Actor, TwinCritic
from jacrec.models.world import World, value_scale
from jacrec.models.wrappers import check_policy_kind
from jacrec.training.config import TrainConfig
from jacrec.training.folder import ELSEWHERE, read_record, recorded_config
from jacrec.training.loop import OnLog
from jacrec.training.run import load_part, train
from jacrec.training.stages.rebrac import SCALE_STATES
from jacrec.util.caller import warn_caller
from jacrec.util.files import user_path, write_text
from jacrec.util.tensors import checksum

Critic = Callable[[Tensor, Tensor], Tensor]
KEPT = {"actor": Actor, "critic": TwinCritic}
"""classes of the networks that a folder keeps, by file stem"""


def train_world(
    data: Transitions,
    out: str | Path,
    *,
    policy: nn.Module,
    critic: Critic,
    discount: float,
    config: TrainConfig | None = None,
    parallel_stages: int = 1,
    quiet: bool = False,
    on_log: OnLog | None = None,
) -> World:
    """Train a world model and a reward model into the folder `out`, and return the world of these with the given critic.

    An interrupted training is resumed by the same call, as with `train`, and a finished one is loaded. An `Actor` and a `TwinCritic`
    are kept in the folder, which then is a run: `load_run`, `jacrec eval`, `jacrec tune` and the others take it.

    Args:
        data: transitions in the policy's observations, with actions in [-1, 1] and the rewards that the critic knows.
        policy: π_ψ, state (B, d) -> action (B, m) in [-1, 1], e.g. that of `jacrec.adapters.from_sb3`.
        critic: Q_φ(state, action) -> (B,).
        discount: γ of the critic.
        config: settings of the two models, the seed, and so on; of the policy's (`config.rebrac`) only `reward_scale` counts, a factor
            on the data's rewards; default: `TrainConfig()`, whose trainings are long.
        parallel_stages: 2 to train both models at the same time.
        quiet: no progress display.
        on_log: called with every line of metrics as it is written, in the thread of its stage.

    Raises:
        ValueError: policy or critic do not fit the data, or `out` contains something else, such as a run of another policy.
        FloatingPointError: training diverged.
    """
    out = user_path(out)
    expect_transitions(data)
    config = config or TrainConfig()
    settings = replace(config.rebrac, discount=discount, updates=0)  # none of ReBRAC's updates are made
    config = replace(config, data=config.data or data.info.name, rebrac=settings)
    scale = _scale(policy, critic, discount, data)
    train(config, out, stages=(), data=data, quiet=True)  # the folder is this training's from here on
    _keep(out, "actor", policy, {ELSEWHERE: 1.0})
    _keep(out, "critic", critic, {} if scale is None else {"value_scale": scale})
    stages = ("dynamics", "reward")
    parallel = {"parallel_stages": parallel_stages, "quiet": quiet, "on_log": on_log}
    train(config, out, stages=stages, data=data, policy=policy, **parallel)
    return load_world(out, critic=critic, value_scale=scale)


def load_world(path: str | Path, *, critic: Critic | None = None, value_scale: float | None = None) -> World:
    """The world in the folder of a training, on the CPU, in evaluation mode.

    Args:
        critic: instead of the folder's own; required if it has none, since only a `TwinCritic` can be kept.
        value_scale: of that critic (`jacrec.value_scale`), the unit of `MPCConfig(units="value")`.

    Raises:
        FileNotFoundError: no training there, or a model is missing.
        ValueError: one of the files is damaged, or another network's.
    """
    path = user_path(path)
    config = recorded_config(path, read_record(path))
    needed = ("dynamics", "reward") if critic is not None else ("dynamics", "reward", "critic")
    missing = [part for part in needed if not (path / f"{part}.safetensors").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: expected a finished world, got one without {', '.join(missing)}; finish the training by the same call as before, "
            "and pass a critic that is not a TwinCritic: load_world(path, critic=critic)"
        )
    loaded = {part: load_part(path / f"{part}.safetensors", part) for part in needed}
    if critic is None:
        critic, notes = loaded["critic"]
        value_scale = notes.get("value_scale") if value_scale is None else value_scale
    return World(loaded["dynamics"][0], loaded["reward"][0], critic, config.rebrac.discount, value_scale)  # pyright: ignore


class _Still(nn.Module):
    """In place of the models that are not trained yet."""

    noise_shape = (0,)


@torch.no_grad()
def _scale(policy: nn.Module, critic: Critic, discount: float, data: Transitions) -> float | None:
    """mean |Q(s, π(s))| over states of the data, None where it is not a positive number; ValueError if the parts do not fit."""
    check_policy_kind(policy)
    world = World(_Still(), _Still(), critic, discount)
    like = next(policy.parameters(), torch.zeros(()))
    state = torch.from_numpy(data.state[:: -(-len(data) // SCALE_STATES)]).to(like)
    try:
        action = policy(state[:2])
    except RuntimeError as error:
        raise ValueError(
            f"policy: expected to take the data's states of d = {data.state_dim}, got an error: {error}"
        ) from error
    if not isinstance(action, Tensor) or tuple(action.shape) != (len(state[:2]), data.action_dim):
        raise ValueError(
            f"policy: expected actions of m = {data.action_dim} as in the data, got shape {tuple(getattr(action, 'shape', ())) or type(action).__name__}"
        )
    largest = float(policy(state).abs().max())
    if largest > 1.0 + 1e-3:
        warn_caller(
            f"policy: expected actions in [-1, 1], as those of the data, got {largest:g}; one in the environment's units has to be "
            "scaled, e.g. by ActionBox.to_unit"
        )
    try:
        value = critic(state[:2], action)
    except RuntimeError as error:
        raise ValueError(
            f"critic: expected to take states (2, {data.state_dim}) and actions {tuple(action.shape)}: {error}"
        ) from error
    if isinstance(value, Tensor) and tuple(value.shape) not in ((len(action),), (len(action), 1)):
        raise ValueError(f"critic: expected one value per row, shape ({len(action)},), got {tuple(value.shape)}")
    if any(True for _ in policy.parameters()):
        admit(policy, world, state[:2], horizon=0)  # another answer than a tensor, or a random one
    with suppress(ValueError):
        return value_scale(policy, critic, state) or None
    return None


def _keep(out: Path, part: str, module: object, notes: dict[str, float]) -> None:
    """Keep one of jacrec's networks in the folder; ValueError if it has another one."""
    path = out / f"{part}.safetensors"
    if type(module) is not KEPT[part]:
        if path.is_file():
            raise ValueError(f"{out}: expected a folder without {part}, got one of another training; choose another folder")
        if part == "actor" and isinstance(module, nn.Module):
            _expect_same(out / f"{part}.crc32", module)
        return
    assert isinstance(module, Actor | TwinCritic)
    if path.is_file():
        kept = load_module(path)
        own, theirs = module.state_dict(), kept.state_dict()
        same = kept.config == module.config and all(torch.equal(theirs[name], own[name].cpu()) for name in own)
        if not same:
            raise ValueError(f"{path}: expected the {part} that is given, got another; choose another folder")
        return
    save_module(module, path, notes=notes)


def _expect_same(path: Path, module: nn.Module) -> None:
    """Record the checksum of a module that the folder cannot keep; ValueError if it has another one's."""
    own = checksum(module.state_dict(), {})
    if not path.is_file():
        write_text(path, f"{own}\n")
    elif path.read_text().strip() != own:
        raise ValueError(f"{path.parent}: expected the {path.stem} of its training, got another; choose another folder")
