"""Episodes of one environment, stepped in parallel."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import mujoco
import mujoco.batch
import numpy as np

from jacrec.envs.actions import ActionBox
from jacrec.envs.batched_tasks import BATCHED_TASKS, BatchedTask
from jacrec.envs.physics import ContactPhysics, GoalInState, is_goal_space, make_env, physics_record, simulator
from jacrec.util.errors import expect_one_of
from jacrec.util.processors import processors

ENGINES = ("auto", "mujoco.batch", "gymnasium")
StepResult = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""observation (k, d), reward (k,), terminated (k,), truncated (k,)"""
_mj: Any = mujoco  # the bindings declare no types


class _ThreadedEngine:
    """All rows on MuJoCo's thread pool; resets are done by gymnasium on one template environment."""

    def __init__(self, env_id: str, n: int, physics: str, threads: int, limit: int | None):
        self.env = make_env(env_id, physics=physics, max_episode_steps=limit)
        core: Any = self.env.unwrapped
        self._core = core
        self._batch = mujoco.batch.Batch(core.model, n, min(threads, n))
        self._qpos, self._ctrl = self._batch.bind("qpos"), self._batch.bind("ctrl")
        self._rows: BatchedTask = BATCHED_TASKS[type(core)](core, self._batch)

    def reset(self, row: int, seed: int) -> np.ndarray:
        observation, _ = self.env.reset(seed=seed)
        kind = int(_mj.mjtState.mjSTATE_INTEGRATION)
        _mj.mj_getState(self._core.model, self._core.data, self._batch.state[row], kind)
        self._rows.reset(row)
        return observation

    def step(self, rows: np.ndarray, actions: np.ndarray) -> StepResult:
        before = self._qpos[rows]
        self._ctrl[rows] = self._rows.control(actions)
        self._batch.step(rows, nstep=self._core.frame_skip)
        # these classes leave truncation to the time limit
        return *self._rows.step(rows, before, actions), np.zeros(len(rows), bool)

    def close(self) -> None:
        self.env.close()


class _LoopedEngine:
    """One gymnasium environment per row, stepped in a loop; supports every environment."""

    def __init__(self, envs: Sequence[gymnasium.Env]):
        self._envs = envs
        self.env = self._envs[0]

    @classmethod
    def of_id(cls, env_id: str, n: int, physics: str, threads: int, limit: int | None) -> "_LoopedEngine":
        # gymnasium's passive checker costs as much as a small simulation
        options = {"disable_env_checker": True, "max_episode_steps": limit}
        return cls([make_env(env_id, physics=physics, **options) for _ in range(n)])

    def reset(self, row: int, seed: int) -> np.ndarray:
        return self._envs[row].reset(seed=seed)[0]

    def step(self, rows: np.ndarray, actions: np.ndarray) -> StepResult:
        results = [self._envs[row].step(action)[:4] for row, action in zip(rows, actions, strict=True)]
        observation, reward, terminated, truncated = map(np.array, zip(*results, strict=True))
        return observation, reward, terminated, truncated

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _MadeEngine(_LoopedEngine):
    """Environments that a caller makes, which get their actions in the type of their own space."""

    def __init__(self, make: Callable[[], gymnasium.Env], n: int):
        made = [make() for _ in range(n)]
        for env in made:
            if not isinstance(env, gymnasium.Env):
                raise ValueError(
                    f"env: expected a function that makes a gymnasium.Env, got one that makes {type(env).__name__}"
                )
            moving = [type(x).__name__ for x in _wrappers(env) if getattr(x, "update_running_mean", False) is True]
            if moving:
                raise ValueError(
                    f"env: expected an environment that stays the same from episode to episode, got {moving[0]} with running "
                    "statistics; set its update_running_mean to False, with the statistics of training"
                )
        if len({id(env) for env in made}) < n:
            raise ValueError(f"env: expected a function that makes a new environment at every call, got the same one {n} times")
        super().__init__([GoalInState(env) if is_goal_space(env.observation_space) else env for env in made])

    def step(self, rows: np.ndarray, actions: np.ndarray) -> StepResult:
        return super().step(rows, actions.astype(self.env.action_space.dtype))


def _can_batch(env: gymnasium.Env) -> bool:
    """Whether `BATCHED_TASKS` covers the environment. The tasks reproduce classes; an id may add options or wrappers to one."""
    spec: Any = env.spec
    options = set(spec.kwargs) - {"task", "collect"}
    wrappers = {wrapper.name for wrapper in spec.additional_wrappers} - {ContactPhysics.__name__}
    return type(env.unwrapped) in BATCHED_TASKS and not options and not wrappers


def _has_contact_physics(env: gymnasium.Env) -> bool:
    """Whether `make_env` has built the environment."""
    return any(isinstance(wrapper, ContactPhysics) for wrapper in _wrappers(env))


def _time_limit(env: gymnasium.Env) -> int | None:
    """The smallest limit of the `TimeLimit` wrappers around an environment; None without one."""
    limits = (x._max_episode_steps for x in _wrappers(env) if isinstance(x, gymnasium.wrappers.TimeLimit))
    return min(limits, default=None)


def _wrappers(env: gymnasium.Env) -> Iterator[gymnasium.Wrapper]:
    """The wrappers around an environment, the outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


class BatchedEnv:
    """`n` episodes of an environment in parallel. A finished row keeps its state, with reward 0, until it is reset.

    Row i, reset with seed s, reproduces `make_env(env_id).reset(seed=s)` and its steps bit for bit, independently of the other
    rows and of the engine. An episode ends when the environment terminates or truncates it, or at the time limit.

    Actions are treated as float64 and, as in gymnasium, not clipped: MuJoCo clips the torque, and the control cost uses the
    action as given. They are in the environment's units, until `action_box` is set to the bounds that [-1, 1] stands for.

    Args:
        env_id: gymnasium id, or a function that makes a new environment at every call. Those of a function are taken as they are:
            `physics` and `threads` have no effect, and they are stepped in a loop.
        engine: "mujoco.batch" (threads inside MuJoCo) supports Hopper, HalfCheetah, Walker2d, Ant-v4 and D4RL's AntMaze;
            "gymnasium" (a loop) supports everything; "auto" selects the first if possible. The attribute `engine` holds the
            selected one.
        threads: default: the processors available to this process.
        max_episode_steps: time limit instead of the environment's own; a function's environments keep theirs beside it.

    Raises:
        ValueError: `n` < 1, unknown ids or engines, spaces that are not boxes, or "mujoco.batch" for an environment it does not
            support.
    """

    def __init__(
        self,
        env_id: str | Callable[[], gymnasium.Env],
        n: int,
        *,
        physics: str = "d4rl",
        engine: str = "auto",
        threads: int | None = None,
        max_episode_steps: int | None = None,
    ):
        expect_one_of("engine", engine, ENGINES)
        if n < 1:
            raise ValueError(f"n: expected at least 1 episode, got {n}")
        if isinstance(env_id, str):
            self.engine, self._engine = self._of_id(env_id, n, physics, engine, threads or processors(), max_episode_steps)
        elif engine == "mujoco.batch":
            raise ValueError(
                "engine: expected 'auto' or 'gymnasium' for environments of a function, got 'mujoco.batch'; give an id"
            )
        else:
            self.engine, self._engine = "gymnasium", _MadeEngine(env_id, n)

        env = self._engine.env
        given, own_limit = not isinstance(env_id, str), env.spec.max_episode_steps if env.spec else _time_limit(env)
        if not isinstance(env_id, str):
            env_id = env.spec.id if env.spec else type(env.unwrapped).__name__
        for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
            if not isinstance(space, gymnasium.spaces.Box):
                raise ValueError(f"env_id: expected continuous {what} (a Box), got {env_id!r} with {space}")
        self.env_id, self.n = env_id, n
        self.physics = {} if given and not _has_contact_physics(env) else physics_record(env)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.state_dim = int(np.prod(env.observation_space.shape or (0,)))
        self.action_dim = int(np.prod(env.action_space.shape or (0,)))
        self.action_box = ActionBox()
        """what actions in [-1, 1] stand for; those of policies: `jacrec.envs.actions.played_box`"""
        step_time = getattr(simulator(env), "dt", None)
        self.step_time = None if step_time is None else float(step_time)
        """seconds of simulated time per step; None if the environment does not state it"""
        self.max_episode_steps = max_episode_steps if given and max_episode_steps is not None else own_limit
        self.elapsed = np.zeros(n, np.int64)
        self._observation = np.zeros((n, self.state_dim))
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)
        self._started = np.zeros(n, bool)

    @staticmethod
    def _of_id(
        env_id: str, n: int, physics: str, engine: str, threads: int, limit: int | None
    ) -> tuple[str, _ThreadedEngine | _LoopedEngine]:
        """The name of the engine that serves an id, and the engine."""
        probe = make_env(env_id, physics=physics)
        threaded = _can_batch(probe)
        probe.close()
        if engine == "mujoco.batch" and not threaded:
            supported = ", ".join(sorted({kind.__name__ for kind in BATCHED_TASKS}))
            raise ValueError(
                f"engine: 'mujoco.batch' supports {supported} without options or wrappers, got {env_id!r}; "
                "use engine='gymnasium'"
            )
        name = ("mujoco.batch" if threaded else "gymnasium") if engine == "auto" else engine
        maker = _ThreadedEngine if name == "mujoco.batch" else _LoopedEngine.of_id
        return name, maker(env_id, n, physics, threads, limit)

    @property
    def done(self) -> np.ndarray:
        """(n,) bool: the row's episode has ended or was never started; it must be reset."""
        return self._terminated | self._truncated | ~self._started

    def reset(self, seeds: Sequence[int] | np.ndarray, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Start new episodes in `rows` (default: all), one seed each; return the observations of all rows, (n, d).

        Raises:
            ValueError: the number of seeds differs from the number of rows, a seed is negative, or a row is out of range.
        """
        rows = np.arange(self.n) if rows is None else np.asarray(rows, np.int64).reshape(-1)
        seeds = np.asarray(seeds).reshape(-1)
        if len(seeds) != len(rows):
            raise ValueError(f"seeds: expected {len(rows)}, one per row, got {len(seeds)}")
        if len(seeds) and seeds.min() < 0:
            raise ValueError(f"seeds: expected integers >= 0, got {seeds.min()}")
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n):
            raise ValueError(f"rows: expected indices in [0, {self.n}), got {rows.tolist()}")
        for row, seed in zip(rows, seeds, strict=True):
            self._observation[row] = self._engine.reset(int(row), int(seed))
        self.elapsed[rows] = 0
        self._terminated[rows] = self._truncated[rows] = False
        self._started[rows] = True
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step every running row; actions (n, m), ignored for finished rows.

        Returns observation (n, d), reward (n,), terminated (n,), truncated (n,). Finished rows repeat their last observation
        and flags, with reward 0.

        Raises:
            ValueError: wrong shape, a non-finite action in a running row, or rows that were never reset.
        """
        actions = np.asarray(actions, np.float64)
        if actions.shape != (self.n, self.action_dim):
            raise ValueError(f"actions: expected shape {(self.n, self.action_dim)}, got {actions.shape}")
        if not self._started.all():
            unset = np.flatnonzero(~self._started).tolist()
            raise ValueError(f"step: expected all rows to be reset first, got rows {unset} without; call reset(seeds)")
        rows = np.flatnonzero(~self.done)
        bad = rows[~np.isfinite(actions[rows]).all(1)]
        if len(bad):
            raise ValueError(f"actions: expected finite numbers, got {actions[bad[0]]} in row {bad[0]}")
        reward = np.zeros(self.n)
        if len(rows):
            result = self._engine.step(rows, self.action_box.from_unit(actions[rows]))
            self._observation[rows], reward[rows], self._terminated[rows], self._truncated[rows] = result
            self.elapsed[rows] += 1
            if self.max_episode_steps is not None:
                self._truncated[rows] |= self.elapsed[rows] >= self.max_episode_steps
        return self._observation.copy(), reward, self._terminated.copy(), self._truncated.copy()

    def close(self) -> None:
        """Close the environments."""
        self._engine.close()
