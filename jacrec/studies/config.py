"""The definition of a study: tasks × training seeds × contestants."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import BASE, RehearsalConfig
from jacrec.evaluation.tuning import TuneConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.training.config import TrainConfig, published_name, rebrac_config
from jacrec.training.run import STAGES

DEFAULT_MODEL = "default"
UNSEEN_SEEDS = tuple(range(10, 20))


@dataclass(frozen=True)
class TaskSpec:
    """One data set and the environment for evaluation."""

    data: str | None = None
    """Minari id, name of a D4RL data set, or path of a file in D4RL's layout, relative to `data_root`; {task} is replaced by
    the task's name. Default: the D4RL data set with the task's name, under `data_root` or where `jacrec data get` stores it"""
    env_id: str | None = None
    """gymnasium id of the environment; None: the one recorded with the data"""
    training: TrainConfig = field(default_factory=TrainConfig)
    """all training settings except the seed. In a spec: the differences to the study's `training`, which in turn overrides
    ReBRAC's published settings if the task is one of the 24"""
    contestants: Mapping[str, MPCConfig | PlannerConfig] = field(default_factory=dict)
    """controllers of contestants with other settings on this task, by name. In a spec: the differences"""


@dataclass(frozen=True)
class ContestantSpec:
    """A contestant other than the base policy."""

    model: str = DEFAULT_MODEL
    """the world model to imagine in: default (trained with the policy), or one of `models`"""
    controller: MPCConfig | PlannerConfig = field(default_factory=MPCConfig)
    """MPC or, if a spec sets `planner`, an action planner. In a spec, its settings are given next to `model`; horizon 0 is
    the control without a world model. `budget` next to `planner` limits the world-model transitions per decision by choosing
    the number of samples (action-gradient: of iterations)"""
    dynamics: Sampler = field(default_factory=Sampler)
    """other sampling settings for that model, e.g. {sampler: ddim, levels: [2, 5]}"""
    rehearse: tuple[str, ...] = ()
    """instead of a controller: candidates, from which a rehearsal in the world model chooses one per cell, or the base policy
    if none of them gains"""
    tune: Mapping[str, MPCConfig] = field(default_factory=dict)
    """instead of a controller: candidates by name, which race in real episodes on tuning seeds, cell by cell
    (`jacrec.evaluation.tuning`); the base policy plays if none gains clearly"""
    across_seeds: bool = False
    """rehearse in the world models of the study's other seeds too; a candidate must gain in all of them"""

    @property
    def chooses(self) -> bool:
        """Whether its controller is chosen cell by cell."""
        return bool(self.rehearse or self.tune)


@dataclass(frozen=True)
class StudyConfig:
    """A study: every task is trained with every seed, and every contestant plays every trained run.

    The defaults follow the standard protocol: settings are tuned on training seeds 0 to 3 with a separate evaluation seed and
    reported on seeds not used for tuning; the networks of the last update play (not the best ones).
    """

    name: str
    """name of the study; its default folder is studies/NAME"""
    tasks: Mapping[str, TaskSpec]
    """by name"""
    seeds: tuple[int, ...] = UNSEEN_SEEDS
    """training seeds (standard protocol: 0 to 3 for tuning, 10 to 19 for reporting)"""
    stages: tuple[str, ...] = STAGES
    """training stages: rebrac (policy and critic), dynamics, reward. If one is omitted, as in a study of prediction errors
    only, there are no episodes"""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """additional world models, trained on the same data and seed: by name, the differences to the task's dynamics settings"""
    evaluation: PlayConfig = field(default_factory=PlayConfig)
    """how episodes are played (standard protocol: 10 episodes, AntMaze 100, evaluation seed 42)"""
    contestants: Mapping[str, ContestantSpec] = field(default_factory=dict)
    """by name; base, the policy as trained, always plays"""
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    """how contestants with `rehearse` choose"""
    tuning: TuneConfig = field(default_factory=TuneConfig)
    """how contestants with `tune` choose; its seed must not be the evaluation's"""
    about: str = ""
    """remarks for the readers of reports: origin of the data, how settings were chosen"""
    data_root: str | None = None
    """folder of relative data paths and of D4RL's files (default: the working directory of the sweep). Not part of the
    study's identity, since it may differ between machines"""

    def cells(self) -> list[tuple[str, int]]:
        """All (task, seed), ordered by seed, so that early results cover all tasks."""
        return [(task, seed) for seed in self.seeds for task in self.tasks]

    def train_config(self, task: str, seed: int) -> TrainConfig:
        """The training settings of a cell."""
        return replace(self.tasks[task].training, seed=seed, env_id=self.tasks[task].env_id)

    def model_config(self, task: str, seed: int, model: str) -> TrainConfig:
        """The training settings of an additional world model in a cell."""
        config = self.train_config(task, seed)
        return replace(config, dynamics=replace(config.dynamics, **self.models[model]))

    def controller(self, task: str, contestant: str) -> MPCConfig | PlannerConfig | None:
        """A contestant's controller on a task; None for the base policy and for contestants that choose it cell by cell."""
        if contestant == BASE or self.contestants[contestant].chooses:
            return None
        return self.tasks[task].contestants.get(contestant, self.contestants[contestant].controller)

    def model_of(self, contestant: str) -> str:
        """The name of a contestant's world model."""
        return DEFAULT_MODEL if contestant == BASE else self.contestants[contestant].model

    def sampler_of(self, contestant: str) -> Sampler:
        """A contestant's sampling settings for its world model."""
        return Sampler() if contestant == BASE else self.contestants[contestant].dynamics

    def play_config(self, task: str) -> PlayConfig:
        """How episodes of a task are played."""
        return self.evaluation if self.tasks[task].env_id is None else replace(self.evaluation, env_id=self.tasks[task].env_id)

    @property
    def players(self) -> tuple[str, ...]:
        """All contestants that play, base first; () if a training stage is omitted."""
        return (BASE, *self.contestants) if set(self.stages) == set(STAGES) else ()


def default_training(task: str, data: str | None) -> TrainConfig:
    """The training settings a study starts from: ReBRAC's published ones if the task or its data is one of the 24.

    One thread, so that a cell is bit-identical wherever it is trained.
    """
    name = published_name(task) or published_name(data or "")
    common: dict[str, Any] = dict(data=data or task, threads=1)
    return TrainConfig(**common) if name is None else TrainConfig(**common, rebrac=rebrac_config(name))
