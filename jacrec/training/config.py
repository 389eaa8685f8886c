"""The settings of a training run: frozen dataclasses whose field texts are the command line's help."""

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

import yaml

from jacrec.models.dynamics.flow import without_solver
from jacrec.util.errors import expect_one_of

LR_SCHEDULES = ("constant", "cosine")
PREDICTIONS = {  # by kind of world model; the last three predict states and take no notice
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
"""the settings of the world model that only some kinds look at, and which"""


@dataclass(frozen=True)
class ReBRACConfig:
    """ReBRAC (Tarasov et al. 2023). The defaults are the reference's common settings for locomotion."""

    actor_bc_coef: float = 0.05
    """β₁, weight of ‖π(s) − a‖² in the actor's loss; published per data set"""
    critic_bc_coef: float = 0.01
    """β₂, weight of ‖a' − â'‖² in the critic's target; published per data set"""
    actor_lr: float = 1e-3
    """Adam's step for the actor"""
    critic_lr: float = 1e-3
    """Adam's step for the critics"""
    batch_size: int = 1024
    """transitions per update"""
    discount: float = 0.99
    """γ; the world's discount is the same"""
    tau: float = 0.005
    """rate at which the targets follow"""
    policy_freq: int = 2
    """critic updates per update of the actor and the targets; the first of them moves all"""
    policy_noise: float = 0.2
    """σ of the noise on the target's action"""
    noise_clip: float = 0.5
    """bound on that noise"""
    normalize_q: bool = True
    """divide the actor's Q by its mean absolute value (λ)"""
    reward_scale: float = 1.0
    """factor on every reward, for the critic and the reward model alike: 1 for locomotion, 100 for AntMaze"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of actor and critics"""
    actor_layer_norm: bool = False
    """LayerNorm after each hidden activation of the actor"""
    critic_layer_norm: bool = True
    """LayerNorm after each hidden activation of the critics"""
    updates: int = 1_000_000
    """critic updates"""

    def __post_init__(self):
        _check_counts(self, "batch_size", "policy_freq")
        _check_range(self, 0.0, 1.0, "discount", "tau")


@dataclass(frozen=True)
class DynamicsConfig:
    """The world model f_θ (section 3.1). The paper names no sizes; these are modest ones that train on a CPU."""

    kind: str = "diffusion"
    """diffusion, flow (flow matching), meanflow (one step), deterministic, ensemble (probabilistic, as of PETS and MBPO), or
    multistep (all steps of a horizon at once)"""
    steps: int = 10
    """K, the diffusion's levels"""
    schedule: str = "vp"
    """vp, cosine or linear"""
    prediction: str = "x0"
    """what the network predicts: x0, the clean sample; or epsilon (diffusion; the paper's: more than twice x0's
    one-step error after 8000 updates) or velocity (flow and meanflow; their papers')"""
    sampler: str = "ddpm"
    """ddpm or ddim"""
    eta: float = 0.0
    """noise of the ddim sampler: 0 none, 1 as ddpm"""
    levels: tuple[int, ...] | None = None
    """the levels that sampling visits; none named: all"""
    sampling_steps: int | None = None
    """flow and meanflow: intervals that sampling takes; none named: 4 and 1. Training does not depend on it"""
    times: str = "uniform"
    """flow and meanflow: how training draws times, uniform or logit-normal (with the mean and std below)"""
    times_mean: float = -0.4
    """of the logit of a time"""
    times_std: float = 1.0
    """of the logit of a time"""
    flow_ratio: float = 0.75
    """meanflow: share of a batch that learns the instantaneous velocity (r = t), which costs no tangent"""
    adaptive_power: float = 0.5
    """meanflow: p of a row's weight 1/(‖Δ‖² + 0.01)^p, ‖Δ‖² its mean square error; 0 weighs all alike"""
    members: int = 5
    """ensemble: networks, each with initial weights of its own and batches of its own from all of the data"""
    horizon: int = 5
    """multistep: the steps that it predicts, the most that a controller can imagine in it"""
    stochastic: bool = False
    """multistep: whether it learns how uncertain each state is, and imagines noise of that size"""
    sweeps: int | None = None
    """multistep: batched passes of an imagination; none named: as many as make it exact, a row of the network each"""
    tilt: float = 0.0
    """η of a policy-tilted model: each transition counts, and is drawn, in proportion to exp(η l) over the training set, with
    l = log π(a|s) of the trained policy; 0: all alike. The stage then comes after rebrac"""
    tilt_std: float = 0.2
    """standard deviation of the Gaussian around the deterministic policy's action that stands in for π(a|s)"""
    tilt_clip: float = 20.0
    """largest weight, as a multiple of their mean"""
    target: str = "difference"
    """what is modelled: difference (s' − s) or state (s'); multistep always takes differences"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers"""
    activation: str = "relu"
    """relu, silu, mish, tanh or gelu"""
    layer_norm: bool = False
    """LayerNorm after each hidden activation"""
    residual: bool = False
    """hidden layers of equal width add their input"""
    updates: int = 200_000
    """gradient steps"""
    batch_size: int = 256
    """transitions per step"""
    lr: float = 1e-3
    """Adam's step"""
    lr_schedule: str = "cosine"
    """constant, or cosine: down to nothing over the updates"""
    max_grad_norm: float | None = 1.0
    """bound on the gradient's norm"""
    ema: float = 0.999
    """decay of the moving average of the weights, which is what is saved and tested; 0 for none"""
    eval_transitions: int = 1000
    """held-out transitions of the RMSE (Figure 2 uses 1000)"""
    eval_samples: int = 4
    """sampled successors per held-out transition"""

    def __post_init__(self):
        expect_one_of("dynamics.kind", self.kind, PREDICTIONS)
        expect_one_of(f"dynamics.prediction of kind {self.kind!r}", self.prediction, PREDICTIONS[self.kind])
        expect_one_of("dynamics.times", self.times, ("logit-normal", "uniform"))
        expect_one_of("dynamics.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_counts(self, "steps", "batch_size", "eval_transitions", "eval_samples", "members", "horizon")
        _check_range(self, 0.0, 1.0, "ema", "eta", "flow_ratio")
        _check_range(self, 0.0, math.inf, "tilt", "adaptive_power", "times_std")
        if self.tilt and self.kind == "multistep":
            raise ValueError(f"dynamics.tilt: expected 0 with kind 'multistep', got {self.tilt}; it weighs single transitions")
        if not self.tilt_std > 0 or not self.tilt_clip > 1:
            raise ValueError(f"DynamicsConfig: expected tilt_std > 0, tilt_clip > 1, got {self.tilt_std} and {self.tilt_clip}")
        for name in ("sampling_steps", "sweeps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"DynamicsConfig.{name}: expected a whole number >= 1 or none, got {value!r}")

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the settings that this kind of world model looks at."""
        return tuple(f.name for f in fields(self) if self.kind in USED_BY.get(f.name, PREDICTIONS))


@dataclass(frozen=True)
class RewardConfig:
    """The reward model r_ξ (section 3.2), with the settings reported for the authors' runs."""

    hidden: tuple[int, ...] = (512, 512, 512)
    """widths of the hidden layers"""
    activation: str = "relu"
    """relu, silu, mish, tanh or gelu"""
    updates: int = 200_000
    """gradient steps"""
    batch_size: int = 2048
    """transitions per step"""
    lr: float = 3e-4
    """Adam's step"""
    lr_schedule: str = "constant"
    """constant, or cosine: down to nothing over the updates"""
    max_grad_norm: float | None = 1.0
    """bound on the gradient's norm"""
    ema: float = 0.0
    """decay of the moving average of the weights; 0 for none"""
    eval_transitions: int = 1000
    """held-out transitions of the RMSE (Figure 3 uses 1000)"""

    def __post_init__(self):
        expect_one_of("reward.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_counts(self, "batch_size", "eval_transitions")
        _check_range(self, 0.0, 1.0, "ema")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: data, policy and critic, world model, reward model."""

    data: str = ""
    """Minari id, path of a D4RL-layout HDF5 file, or a data set made by `jacrec data make`"""
    env_id: str | None = None
    """gymnasium id of the evaluating environment, where the data does not say it or says it wrongly"""
    seed: int = 0
    """the one seed: initial weights, batches, noise, the choice of held-out episodes"""
    rebrac: ReBRACConfig = field(default_factory=ReBRACConfig)
    """policy and critic"""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """world model"""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """reward model"""
    held_out: float = 0.1
    """share of the episodes kept from the world and reward models for their test (ReBRAC uses all, as the reference does)"""
    threads: int | None = None
    """threads of torch for each stage; none named: all that torch takes. Equal bits need equal numbers of threads"""
    device: str = "cpu"
    """torch device of the training, e.g. cuda; the batches are drawn on the CPU and are the same everywhere"""
    deterministic: bool = False
    """equal bits for equal seeds on a GPU too, on one machine with one version of torch: only operations without atomic sums,
    fixed workspaces, no TF32. A CPU gives equal bits for equal numbers of threads without it"""
    log_every: int = 1000
    """updates between lines of metrics.jsonl, each with the errors on held-out transitions"""
    checkpoint_every: int = 5000
    """updates between checkpoints, at most that many are lost to an interruption"""

    def __post_init__(self):
        _check_counts(self, "log_every", "checkpoint_every")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out: expected a share of the episodes between 0 and 1, got {self.held_out}")

    @classmethod
    def for_dataset(cls, data: str, **changes: Any) -> "TrainConfig":
        """The settings for a data set: ReBRAC's published ones where its name is one of the 24, else the defaults."""
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
    """The names of the 24 data sets with published settings, e.g. "hopper-medium-replay-v2"."""
    return list(_published())


def rebrac_config(name: str, **changes: Any) -> ReBRACConfig:
    """The published ReBRAC settings of one of the 24 data sets."""
    expect_one_of("data set", name, _published())
    return replace(_part(ReBRACConfig, _published()[name]), **changes)


KINDS = "random|medium|expert|medium-expert|medium-replay|full-replay"
ANTMAZE_FILES = {  # D4RL's file names, by maze and by whether goals vary
    ("u", "False"): "umaze",
    ("u", "True"): "umaze-diverse",
    ("big", "False"): "medium-play",
    ("big", "True"): "medium-diverse",
    ("hardest", "False"): "large-play",
    ("hardest", "True"): "large-diverse",
}


def published_name(data: str) -> str | None:
    """Which of the 24 a Minari id, a D4RL name or a D4RL file is, or None.

    "hopper-medium-replay-v2", "some/folder/hopper_medium_replay-v2.hdf5", "mujoco/hopper/medium-v0",
    "D4RL/antmaze/umaze-diverse-v1" and D4RL's own AntMaze files are recognised. Of jacrec's own sets those of AntMaze are,
    whose task is D4RL's though the walker is not.
    """
    file = re.fullmatch(r"(.*)\.(hdf5|h5)", data)
    name = (PurePath(file[1]).name if file else data).replace("_", "-")
    maze = re.match(r"Ant-maze-(u|big|hardest)-maze-noisy-multistart-(?:True|False)-multigoal-(True|False)", name)
    if maze:
        return f"antmaze-{ANTMAZE_FILES[maze[1], maze[2]]}-v2"
    name = re.sub(r"^(mujoco|d4rl|jacrec(?=/antmaze-))/", "", name.lower()).replace("/", "-")
    known = re.fullmatch(rf"(?:(?:hopper|halfcheetah|walker2d)-(?:{KINDS})|antmaze-[a-z-]+)(-v\d+)?", name)
    if known is None:
        return None
    name = name.removesuffix(known[1] or "") + "-v2"
    return name if name in _published() else None


def to_dict(config: Any) -> Any:
    """A configuration as plain dicts and lists, ready for YAML."""
    if is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}
    return list(config) if isinstance(config, tuple) else config


PARTS = {"rebrac": ReBRACConfig, "dynamics": DynamicsConfig, "reward": RewardConfig}


def from_dict(content: dict[str, Any]) -> TrainConfig:
    """The configuration of `to_dict`, or of a part of it: what is not named keeps its default.

    Raises:
        ValueError: an unknown setting.
    """
    if content.get("dynamics"):
        content = content | {"dynamics": without_solver(content["dynamics"], "settings.dynamics")}
    known = {f.name for f in fields(TrainConfig)}
    unknown = [k for k in content if k not in known]
    for part, kind in PARTS.items():
        unknown += [f"{part}.{k}" for k in content.get(part) or {} if k not in {f.name for f in fields(kind)}]
    if unknown:
        known = ", ".join(sorted(known))
        raise ValueError(f"settings: expected names of TrainConfig, got {', '.join(unknown)}; known are {known}")
    values = dict(content)
    for part, kind in PARTS.items():
        if part in values:
            values[part] = _part(kind, values[part])
    return TrainConfig(**values)


def _part(kind: type, content: dict[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})


def _check_counts(config: Any, *names: str) -> None:
    for name in (*names, *(n for n in ("updates",) if hasattr(config, n))):
        value, least = getattr(config, name), 0 if name == "updates" else 1
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{type(config).__name__}.{name}: expected a whole number >= {least}, got {value!r}")


def _check_range(config: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{type(config).__name__}.{name}: expected {low} <= value <= {high}, got {value!r}")
