"""What a study is: tasks × training seeds × contestants.

StudyConfig     .cells() .train_config(task, seed) .model_config(task, seed, model) .controller(task, contestant)
TaskSpec  ContestantSpec
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jacrec.control.controller import MPCConfig
from jacrec.evaluation.config import PlayConfig
from jacrec.evaluation.rehearsal import BASE, RehearsalConfig
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.training.config import TrainConfig, published_name, rebrac_config
from jacrec.training.run import STAGES

DEFAULT_MODEL = "default"
UNSEEN_SEEDS = tuple(range(10, 20))


@dataclass(frozen=True)
class TaskSpec:
    """One data set and the environment that it is evaluated in."""

    data: str | None = None
    """Minari id, name of a D4RL data set, or path of a D4RL-layout file, looked up under `data_root`; {task} in it stands for
    the task's name. None named: the D4RL data set of the task's name, its file under `data_root` or where `jacrec data get`
    puts it"""
    env_id: str | None = None
    """gymnasium id of the environment, where the data do not say it"""
    training: TrainConfig = field(default_factory=TrainConfig)
    """all settings of its training but the seed. In a spec: what differs from the study's `training`, which differs from
    ReBRAC's published settings where the task is one of the 24"""
    contestants: Mapping[str, MPCConfig | PlannerConfig] = field(default_factory=dict)
    """controllers of contestants that are set differently for this task, by name. In a spec: what differs"""


@dataclass(frozen=True)
class ContestantSpec:
    """Who plays beside the base policy."""

    model: str = DEFAULT_MODEL
    """the world model it imagines in: default (the training's own), or one of `models`"""
    controller: MPCConfig | PlannerConfig = field(default_factory=MPCConfig)
    """MPC or, where a spec says `planner`, a planner over actions. In a spec its settings stand beside `model`; horizon 0 is
    the control without a world model. `budget` beside `planner` sets its samples (action-gradient: its iterations) so that
    it spends at most so many transitions of the world model per decision"""
    dynamics: Sampler = field(default_factory=Sampler)
    """that model sampled otherwise than it was made, e.g. {sampler: ddim, levels: [2, 5]}"""
    rehearse: tuple[str, ...] = ()
    """no controller of its own: of these contestants the one that a rehearsal in the world model chooses, cell by cell, or
    the base policy where none gains there"""
    across_seeds: bool = False
    """rehearse in the world models of the study's other seeds too: only what gains in all of them may act"""


@dataclass(frozen=True)
class StudyConfig:
    """A study: every task trained with every seed, every contestant playing every trained run.

    The defaults are the literature's protocol: settings are tuned on training seeds 0 to 3 with an evaluation seed of their
    own, and reported on seeds that took no part in the tuning; the networks of the last update play (not the best ones).
    """

    name: str
    """of the study; its folder is studies/NAME unless told"""
    tasks: Mapping[str, TaskSpec]
    """by name"""
    seeds: tuple[int, ...] = UNSEEN_SEEDS
    """training seeds (the protocol: 0 to 3 for tuning, 10 to 19 for reporting)"""
    stages: tuple[str, ...] = STAGES
    """what is trained: rebrac (policy and critic), dynamics, reward. Where one is missing, as in a study of prediction errors
    alone, nobody plays"""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """further world models, each trained on the same data and seed: by name, what differs from the task's dynamics settings"""
    evaluation: PlayConfig = field(default_factory=PlayConfig)
    """how everybody's episodes are played (the protocol: 10 episodes, AntMaze 100, evaluation seed 42)"""
    contestants: Mapping[str, ContestantSpec] = field(default_factory=dict)
    """by name; base, the policy as it was trained, always plays"""
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    """how contestants with `rehearse` choose"""
    about: str = ""
    """what a reader of its reports should know: where the data come from, how the settings were chosen"""
    data_root: str | None = None
    """folder in which relative paths of data, and D4RL's files, are looked up; none named: where the sweep is started. No part
    of what the study is: another machine may keep its data elsewhere"""

    def cells(self) -> list[tuple[str, int]]:
        """(task, seed), the first seed of every task first: early results speak of all tasks."""
        return [(task, seed) for seed in self.seeds for task in self.tasks]

    def train_config(self, task: str, seed: int) -> TrainConfig:
        """The settings of a cell's training."""
        return replace(self.tasks[task].training, seed=seed, env_id=self.tasks[task].env_id)

    def model_config(self, task: str, seed: int, model: str) -> TrainConfig:
        """The settings of a cell's further world model."""
        config = self.train_config(task, seed)
        return replace(config, dynamics=replace(config.dynamics, **self.models[model]))

    def controller(self, task: str, contestant: str) -> MPCConfig | PlannerConfig | None:
        """A contestant's controller on a task; None: the base policy, or one that a rehearsal chooses."""
        if contestant == BASE or self.contestants[contestant].rehearse:
            return None
        return self.tasks[task].contestants.get(contestant, self.contestants[contestant].controller)

    def model_of(self, contestant: str) -> str:
        """The name of the world model that a contestant imagines in."""
        return DEFAULT_MODEL if contestant == BASE else self.contestants[contestant].model

    def sampler_of(self, contestant: str) -> Sampler:
        """How a contestant samples that model."""
        return Sampler() if contestant == BASE else self.contestants[contestant].dynamics

    def play_config(self, task: str) -> PlayConfig:
        """How episodes of a task are played."""
        return self.evaluation if self.tasks[task].env_id is None else replace(self.evaluation, env_id=self.tasks[task].env_id)

    @property
    def players(self) -> tuple[str, ...]:
        """Everybody who plays, base first; nobody where not everything is trained."""
        return (BASE, *self.contestants) if set(self.stages) == set(STAGES) else ()


def published_start(task: str, data: str | None) -> TrainConfig:
    """Settings before the study's own: ReBRAC's published ones where the task or its data is one of the 24.

    One thread, so that the same bits come out wherever a cell is trained.
    """
    name = published_name(task) or published_name(data or "")
    common: dict[str, Any] = dict(data=data or task, threads=1)
    return TrainConfig(**common) if name is None else TrainConfig(**common, rebrac=rebrac_config(name))
