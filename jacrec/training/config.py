"""Settings of a training run: frozen dataclasses whose field docstrings are the command line's help."""

import math
import re
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

import yaml

from jacrec.data.d4rl_files import ANTMAZE, KINDS, LOCOMOTION
from jacrec.envs.actions import ActionBox
from jacrec.models.dynamics.flow import without_solver
from jacrec.util.errors import check_fields, expect_count, expect_one_of, expect_seed

LR_SCHEDULES = ("constant", "cosine")
PREDICTIONS = {  # by kind of world model; the last three always predict states and ignore the setting
    "diffusion": ("epsilon", "x0"),
    "flow": ("velocity", "x0"),
    "meanflow": ("velocity", "x0"),
    "deterministic": ("epsilon", "x0"),
    "ensemble": ("epsilon", "x0"),
    "multistep": ("epsilon", "x0"),
}

USED_BY: dict[str, tuple[str, ...]] = {
    "steps": ("diffusion",),
    "schedule": ("diffusion",),
    "sampler": ("diffusion",),
    "eta": ("diffusion",),
    "levels": ("diffusion",),
    "prediction": ("diffusion", "flow", "meanflow"),
    **dict.fromkeys(("sampling_steps", "times", "times_mean", "times_std"), ("flow", "meanflow")),
    **dict.fromkeys(("flow_ratio", "adaptive_power"), ("meanflow",)),
    "members": ("ensemble",),
    **dict.fromkeys(("horizon", "stochastic", "sweeps"), ("multistep",)),
    **dict.fromkeys(("target", "tilt", "tilt_std", "tilt_clip"), tuple(kind for kind in PREDICTIONS if kind != "multistep")),
}
"""settings of the world model that only some kinds use, and those kinds"""


@dataclass(frozen=True)
class ReBRACConfig:
    """ReBRAC (Tarasov et al. 2023). The defaults are the reference's common settings for locomotion."""

    actor_bc_coef: float = 0.05
    """β₁, weight of ‖π(s) − a‖² in the actor's loss; published per data set"""
    critic_bc_coef: float = 0.01
    """β₂, weight of ‖a' − â'‖² in the critic's target; published per data set"""
    actor_lr: float = 1e-3
    """Adam's learning rate for the actor"""
    critic_lr: float = 1e-3
    """Adam's learning rate for the critics"""
    batch_size: int = 1024
    """transitions per update"""
    discount: float = 0.99
    """γ, also the world's discount"""
    tau: float = 0.005
    """averaging rate of the target networks"""
    policy_freq: int = 2
    """critic updates per update of the actor and the targets; the first one updates all"""
    policy_noise: float = 0.2
    """σ of the noise on the target action"""
    noise_clip: float = 0.5
    """bound on the noise on the target action"""
    normalize_q: bool = True
    """divide Q in the actor's loss by its mean absolute value (λ)"""
    reward_scale: float = 1.0
    """factor on every reward, for critic and reward model: 1 for locomotion, 100 for AntMaze"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of actor and critics"""
    actor_layer_norm: bool = False
    """LayerNorm after each hidden activation of the actor"""
    critic_layer_norm: bool = True
    """LayerNorm after each hidden activation of the critics"""
    updates: int = 1_000_000
    """number of critic updates"""

    def __post_init__(self):
        check_fields(self, _prefix(self))
        _check_counts(self, "batch_size", "policy_freq", "hidden")
        _check_range(self, 0.0, sys.float_info.max, "actor_lr", "critic_lr", "policy_noise", "noise_clip")
        _check_range(self, 0.0, 1.0, "discount", "tau")


@dataclass(frozen=True)
class DynamicsConfig:
    """The world model f_θ (section 3.1). The paper states no sizes; the defaults are small enough to train on a CPU."""

    kind: str = "diffusion"
    """diffusion, flow (flow matching), meanflow (one step), deterministic, ensemble (probabilistic, as in PETS and MBPO), or
    multistep (all steps of a horizon at once)"""
    steps: int = 10
    """diffusion: number of levels K"""
    schedule: str = "vp"
    """diffusion: variance schedule, vp, cosine or linear"""
    prediction: str = "x0"
    """what the network predicts: x0 (the clean sample), epsilon (diffusion, as in the paper; more than twice x0's one-step error
    after 8000 updates) or velocity (flow and meanflow, as in their papers)"""
    sampler: str = "ddpm"
    """diffusion: ddpm or ddim"""
    eta: float = 0.0
    """diffusion: noise of the ddim sampler, 0 for none, 1 as ddpm"""
    levels: tuple[int, ...] | None = None
    """diffusion: levels used in sampling; None for all"""
    sampling_steps: int | None = None
    """flow and meanflow: integration steps in sampling, not used in training; None for 4 (flow) or 1 (meanflow)"""
    times: str = "uniform"
    """flow and meanflow: distribution of training times, uniform or logit-normal (with the mean and std below)"""
    times_mean: float = -0.4
    """flow and meanflow: mean of the logit of a time"""
    times_std: float = 1.0
    """flow and meanflow: standard deviation of the logit of a time"""
    flow_ratio: float = 0.75
    """meanflow: share of a batch trained on the instantaneous velocity (r = t), which needs no tangent"""
    adaptive_power: float = 0.5
    """meanflow: p in a row's weight 1/(‖Δ‖² + 0.01)^p, where ‖Δ‖² is its mean squared error; 0 for equal weights"""
    members: int = 5
    """ensemble: number of networks, each with its own initial weights and its own batches from all of the data"""
    horizon: int = 5
    """multistep: number of predicted steps, the maximum horizon of a controller"""
    stochastic: bool = False
    """multistep: also learn the uncertainty of each state, and sample noise of that size"""
    sweeps: int | None = None
    """multistep: batched passes per rollout; None for as many as an exact rollout needs"""
    tilt: float = 0.0
    """η of a policy-tilted model: transitions are sampled in proportion to exp(η l), where l = log π(a|s) of the trained policy; 0
    for uniform sampling. The policy must be trained first"""
    tilt_std: float = 0.2
    """standard deviation of the Gaussian around the deterministic policy's action that defines π(a|s) for tilt"""
    tilt_clip: float = 20.0
    """maximum tilting weight, as a multiple of the mean weight"""
    target: str = "difference"
    """prediction target: difference (s' − s) or state (s'); multistep always predicts differences"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    activation: str = "relu"
    """relu, silu, mish, tanh or gelu"""
    layer_norm: bool = False
    """LayerNorm after each hidden activation"""
    residual: bool = False
    """residual connections between hidden layers of equal width"""
    updates: int = 200_000
    """number of gradient steps"""
    batch_size: int = 256
    """transitions per gradient step"""
    lr: float = 1e-3
    """Adam's learning rate"""
    lr_schedule: str = "cosine"
    """constant, or cosine: decays to zero over the updates"""
    max_grad_norm: float | None = 1.0
    """clip the gradient to this norm; None for no clipping"""
    ema: float = 0.999
    """decay of the moving average of the weights, which is saved and evaluated; 0 for no averaging"""
    eval_transitions: int = 1000
    """held-out transitions for the RMSE (Figure 2 uses 1000)"""
    eval_samples: int = 4
    """samples per held-out transition"""

    def __post_init__(self):
        check_fields(self, _prefix(self))
        expect_one_of("dynamics.kind", self.kind, PREDICTIONS)
        expect_one_of(f"dynamics.prediction of kind {self.kind!r}", self.prediction, PREDICTIONS[self.kind])
        expect_one_of("dynamics.times", self.times, ("logit-normal", "uniform"))
        expect_one_of("dynamics.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_counts(self, "steps", "batch_size", "eval_transitions", "eval_samples", "members", "horizon", "hidden")
        _check_range(self, 0.0, sys.float_info.max, "lr", *(() if self.max_grad_norm is None else ("max_grad_norm",)))
        _check_range(self, 0.0, 1.0, "ema", "eta", "flow_ratio")
        _check_range(self, 0.0, math.inf, "tilt", "adaptive_power", "times_std")
        if self.tilt and self.kind == "multistep":
            raise ValueError(f"dynamics.tilt: expected 0 with kind 'multistep', got {self.tilt}; it weights single transitions")
        for name, bound in (("tilt_std", 0), ("tilt_clip", 1)):
            if not getattr(self, name) > bound:
                raise ValueError(f"dynamics.{name}: expected a number > {bound}, got {getattr(self, name)}")
        for name in ("sampling_steps", "sweeps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"dynamics.{name}: expected an integer >= 1 or None, got {value!r}")

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the settings that this kind of world model uses."""
        return tuple(f.name for f in fields(self) if self.kind in USED_BY.get(f.name, PREDICTIONS))


@dataclass(frozen=True)
class RewardConfig:
    """The reward model r_ξ (section 3.2). The defaults are the settings reported for the authors' runs."""

    hidden: tuple[int, ...] = (512, 512, 512)
    """widths of the hidden layers"""
    activation: str = "relu"
    """relu, silu, mish, tanh or gelu"""
    updates: int = 200_000
    """number of gradient steps"""
    batch_size: int = 2048
    """transitions per gradient step"""
    lr: float = 3e-4
    """Adam's learning rate"""
    lr_schedule: str = "constant"
    """constant, or cosine: decays to zero over the updates"""
    max_grad_norm: float | None = 1.0
    """clip the gradient to this norm; None for no clipping"""
    ema: float = 0.0
    """decay of the moving average of the weights, which is saved and evaluated; 0 for no averaging"""
    eval_transitions: int = 1000
    """held-out transitions for the RMSE (Figure 3 uses 1000)"""

    def __post_init__(self):
        check_fields(self, _prefix(self))
        expect_one_of("reward.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_counts(self, "batch_size", "eval_transitions", "hidden")
        _check_range(self, 0.0, sys.float_info.max, "lr", *(() if self.max_grad_norm is None else ("max_grad_norm",)))
        _check_range(self, 0.0, 1.0, "ema")


@dataclass(frozen=True)
class TrainConfig:
    """A complete run: data, policy and critic, world model, reward model."""

    data: str = ""
    """name of a D4RL data set, Minari id, or path of a D4RL-layout file"""
    env_id: str | None = None
    """gymnasium id of the evaluation environment; None for the one named in the data"""
    mapping: str | None = None
    """YAML file, or neorl2 or lerobot: which arrays or columns of the data's file are what; None for D4RL's names"""
    repair: bool = False
    """skip empty episodes, drop incomplete or non-finite last steps and clip actions slightly out of bounds, with a warning,
    instead of refusing such data"""
    action_low: tuple[float, ...] | None = None
    """lower bounds of the data's actions in the environment's units, one number per component or one for all; None for those
    that a Minari data set states, and for files with actions in [-1, 1] that stand for the environment's own bounds"""
    action_high: tuple[float, ...] | None = None
    """upper bounds, likewise"""
    seed: int = 0
    """seed of initial weights, batches, noise and the choice of held-out episodes"""
    rebrac: ReBRACConfig = field(default_factory=ReBRACConfig)
    """policy and critic"""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """world model"""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """reward model"""
    held_out: float = 0.1
    """share of the episodes held out from the world and reward models for evaluation (ReBRAC uses all, as in the reference); none
    if the data bring such episodes, as OGBench's do in NAME-val.npz"""
    threads: int | None = None
    """torch threads per stage; None for torch's own number. Results are bit-identical only for equal numbers of threads"""
    device: str = "cpu"
    """torch device, e.g. cuda; batches are drawn on the CPU and are the same on every device"""
    deterministic: bool = False
    """bit-identical results for equal seeds on a GPU too, on one machine with one version of torch: no atomic sums, fixed
    workspaces, no TF32. On a CPU, equal numbers of threads suffice"""
    log_every: int = 1000
    """updates between lines of metrics.jsonl, each with the errors on held-out transitions"""
    checkpoint_every: int = 5000
    """updates between checkpoints; a kill loses at most this many"""

    def __post_init__(self):
        check_fields(self, _prefix(self))
        _check_counts(self, "log_every", "checkpoint_every", *(() if self.threads is None else ("threads",)))
        expect_seed("seed", self.seed)
        ActionBox.stated(self.action_low, self.action_high)  # raises if they are not bounds
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out: expected a share of the episodes in (0, 1), got {self.held_out}")

    @classmethod
    def for_dataset(cls, data: str, **changes: Any) -> "TrainConfig":
        """Settings for a data set: ReBRAC's published settings if its name is one of the 24, otherwise the defaults."""
        name = published_name(data)
        return cls(data=data, rebrac=ReBRACConfig() if name is None else rebrac_config(name), **changes)


@cache
def _published() -> dict[str, dict[str, Any]]:
    table = {}
    for path in sorted(resources.files("jacrec.training").joinpath("configs").iterdir(), key=lambda p: p.name):
        if path.name.endswith(".yaml"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            table |= {name: content["common"] | own for name, own in content["datasets"].items()}
    return table


def published_datasets() -> list[str]:
    """Names of the 24 data sets with published settings, e.g. "hopper-medium-replay-v2"."""
    return list(_published())


def rebrac_config(name: str, **changes: Any) -> ReBRACConfig:
    """The published ReBRAC settings of one of the 24 data sets."""
    expect_one_of("data set", name, _published())
    return replace(_part(ReBRACConfig, _published()[name]), **changes)


# names by maze and random goals as spelled in D4RL's file names; random starts follow from the two
ANTMAZE_FILES = {(maze, str(goals)): name for name, (maze, _, goals) in ANTMAZE.items()}


def published_name(data: str) -> str | None:
    """The one of the 24 that a Minari id, a D4RL name or a D4RL file refers to; None if there is none.

    Recognised are e.g. "hopper-medium-replay-v2", "some/folder/hopper_medium_replay-v2.hdf5", "mujoco/hopper/medium-v0",
    "D4RL/antmaze/umaze-diverse-v1", D4RL's own AntMaze files, and jacrec's own AntMaze data sets, whose task is D4RL's.
    """
    file = re.fullmatch(r"(.*)\.(hdf5|h5)", data)
    name = (PurePath(file[1]).name if file else data).replace("_", "-")
    maze = re.match(r"Ant-maze-((?:u|big|hardest)-maze)-noisy-multistart-(?:True|False)-multigoal-(True|False)", name)
    if maze:
        return ANTMAZE_FILES[maze[1], maze[2]]
    name = re.sub(r"^(mujoco|d4rl|jacrec(?=/antmaze-))/", "", name.lower()).replace("/", "-")
    known = re.fullmatch(rf"(?:(?:{'|'.join(LOCOMOTION)})-(?:{'|'.join(KINDS)})|antmaze-[a-z-]+)(-v\d+)?", name)
    if known is None:
        return None
    name = name.removesuffix(known[1] or "") + "-v2"
    return name if name in _published() else None


def to_dict(config: Any) -> Any:
    """A configuration as plain dicts and lists, for YAML."""
    if is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    return list(config) if isinstance(config, tuple) else config


PARTS = {"rebrac": ReBRACConfig, "dynamics": DynamicsConfig, "reward": RewardConfig}


def from_dict(content: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`. Missing settings take their defaults.

    Raises:
        ValueError: an unknown setting.
    """
    if content.get("dynamics"):
        content = content | {"dynamics": without_solver(content["dynamics"], "settings.dynamics")}
    known = {f.name for f in fields(TrainConfig)}
    unknown = [str(k) for k in content if k not in known]
    for part, kind in PARTS.items():
        unknown += [f"{part}.{k}" for k in content.get(part) or {} if k not in {f.name for f in fields(kind)}]
    if unknown:
        known = ", ".join(sorted(known))
        raise ValueError(f"settings: expected fields of TrainConfig ({known}), got {', '.join(unknown)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    for part, kind in PARTS.items():
        if part in values:
            values[part] = _part(kind, values[part])
    return TrainConfig(**values)


def _part(kind: type, content: dict[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})


def _check_counts(config: Any, *names: str) -> None:
    for name in (*names, *(n for n in ("updates",) if hasattr(config, n))):
        value, lowest = getattr(config, name), 0 if name == "updates" else 1
        for count in value if name == "hidden" else (value,):
            expect_count(f"{_prefix(config)}{name}", count, lowest)


def _check_range(config: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{_prefix(config)}{name}: expected {low} <= value <= {high}, got {value!r}")


def _prefix(config: Any) -> str:
    """What precedes a setting's name on the command line."""
    return next((f"{part}." for part, kind in PARTS.items() if isinstance(config, kind)), "")
