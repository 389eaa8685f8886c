"""Search for gaits such as the one in behaviour.yaml: CMA-ES for walking in any direction on flat ground.

    python -m jacrec.data.behaviour.ant_gait_search --seed 0

The search first uses a clock, which tolerates a bad phase, and then the gait as it is used, without one. It rewards speed
along the heading up to `TARGET_SPEED` and penalises falls, a tilted torso, sideways drift and torque. With unlimited
reward for speed the gait tips over at the goal: such a gait reached 1.92 m/s, and 16 to 34 of 100 ants lay on their backs
at the end of an episode. `evaluate_gait` measures what matters for the task: the share of episodes in which the follower
reaches the goal, and the share of ants on their backs at the time limit.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import mujoco.batch
import numpy as np

from jacrec.data.behaviour.ant_gait import Gait
from jacrec.data.behaviour.antmaze import ACTION_NOISE, WaypointFollower
from jacrec.data.behaviour.cmaes import minimise
from jacrec.envs.antmaze import COLLECTION_IDS, FRAME_SKIP, observe, torque
from jacrec.envs.antmaze_layout import Maze
from jacrec.envs.antmaze_model import ant_maze_xml
from jacrec.envs.batch import BatchedEnv
from jacrec.envs.physics import margins_are_summed

_mj: Any = mujoco  # the bindings declare no types
STEP_TIME = 0.1
TARGET_SPEED = 1.2
"""metres per second, averaged over a walk from standstill"""
# a slow trot that barely moves: hips swing with sin β, ankles are half bent
INITIAL_PARAMETERS = np.array(
    [1.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 1.0, 0.1, 0.8, 1.0]
)
INITIAL_STD = np.array([0.2, *[0.15] * 10, 0.1, 0.1, 0.15, 0.1, 0.1, 0.3, 0.03, 0.3, 0.1])
PHASE_PARAMETERS = np.arange(len(INITIAL_PARAMETERS)) >= 18  # the lead, and the scale of velocities


@dataclass(frozen=True)
class WalkStatistics:
    """Results of simulated walks, (gaits,) each."""

    speed: np.ndarray
    """metres per second along the heading"""
    drift: np.ndarray
    """absolute sideways speed, metres per second"""
    fallen: np.ndarray
    """share of ants on their backs"""
    tilt: np.ndarray
    """mean of 1 − cos of the angle between the torso axis and the vertical"""
    effort: np.ndarray
    """mean squared action"""

    @property
    def cost(self) -> np.ndarray:
        """The objective of the search, (gaits,)."""
        return (
            0.5 * self.drift + 3.0 * self.fallen + 10.0 * self.tilt + 0.3 * self.effort - np.minimum(self.speed, TARGET_SPEED)
        )


class FlatGround:
    """`n` ants stepped in parallel on a floor without walls."""

    def __init__(self, n: int, threads: int = 1):
        model = _mj.MjModel.from_xml_string(ant_maze_xml(Maze(("   ",) * 3, (1, 1), ((1, 1),), 1)))
        if margins_are_summed():
            model.geom_margin[:] *= 0.5
        self.n, self.batch = n, mujoco.batch.Batch(model, n, threads)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self.start = model.qpos0.copy()

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Reset as the environment does, with random yaw; states (n, 29)."""
        self.batch.reset()
        self.qpos[:] = self.start + rng.uniform(-0.1, 0.1, self.qpos.shape)
        half = rng.uniform(-np.pi, np.pi, self.n) / 2
        self.qpos[:, 3:7] = np.stack((np.cos(half), 0 * half, 0 * half, np.sin(half)), axis=1)
        self.qvel[:] = 0.1 * rng.standard_normal(self.qvel.shape)
        return observe(self.qpos, self.qvel, None)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Map actions (n, 8) to states (n, 29)."""
        self.ctrl[:] = torque(actions)
        self.batch.step(nstep=FRAME_SKIP)
        return observe(self.qpos, self.qvel, None)


def simulate_walk(
    gaits: list[Gait], ground: FlatGround, rng: np.random.Generator, *, steps: int, clock: bool, noise: float
) -> WalkStatistics:
    """Simulate every gait with an equal share of the ants, in different directions; all gaits share directions and noise."""
    each = ground.n // len(gaits)
    seed = int(rng.integers(2**31))
    ground.reset(np.random.default_rng(seed))
    for name in ("qpos", "qvel"):
        rows = getattr(ground, name)
        rows[:] = np.tile(rows[:each], (len(gaits), 1))
    state = observe(ground.qpos, ground.qvel, None)
    heading = np.linspace(0, 2 * np.pi, each, endpoint=False) + rng.uniform(0, 2 * np.pi)
    direction = np.stack((np.cos(heading), np.sin(heading)), axis=1)
    began, effort, tilt = state[:, :2], np.zeros(ground.n), np.zeros(ground.n)
    for k in range(steps):
        parts = state.reshape(len(gaits), each, -1)
        wish = [
            g.act_with_clock(s, heading, k * STEP_TIME) if clock else g(s, heading) for g, s in zip(gaits, parts, strict=True)
        ]
        draws = np.tile(rng.standard_normal((each, 8)), (len(gaits), 1))
        action = np.clip(np.concatenate(wish) + noise * draws, -1.0, 1.0)
        state = ground.step(action)
        effort += np.square(action).mean(1) / steps
        tilt += (1 - upright(state)) / steps

    def mean(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(gaits), each).mean(1)

    velocity = (state[:, :2] - began).reshape(len(gaits), each, 2) / (steps * STEP_TIME)
    along = (velocity * direction).sum(-1)
    aside = velocity[..., 1] * direction[:, 0] - velocity[..., 0] * direction[:, 1]
    return WalkStatistics(along.mean(1), np.abs(aside).mean(1), mean(upright(state) < 0), mean(tilt), mean(effort))


def upright(state: np.ndarray) -> np.ndarray:
    """Cosine of the angle between the torso axis and the vertical, (n,); negative on the back."""
    return 1 - 2 * np.square(state[:, 4:6]).sum(1)


def search(
    *, seed: int, generations: int, population: int = 16, ants: int = 4, steps: int = 80, threads: int = 1, quiet: bool = False
) -> Gait:
    """Find a gait from `INITIAL_PARAMETERS`: `generations` with a clock, then as many without."""
    rng = np.random.default_rng(seed)
    ground, mean, began = FlatGround(population * ants, threads), INITIAL_PARAMETERS, time.monotonic()
    for clock in (True, False):

        def cost(points: np.ndarray, clock: bool = clock) -> np.ndarray:
            gaits = [Gait.from_parameters(point) for point in points]
            return simulate_walk(gaits, ground, rng, steps=steps, clock=clock, noise=ACTION_NOISE).cost

        def report(generation: int, costs: np.ndarray, _: np.ndarray, clock: bool = clock) -> None:
            if not quiet and generation % 5 == 0:
                phase = "with a clock" if clock else "without"
                elapsed = time.monotonic() - began
                print(f"{elapsed:5.0f} s  {phase}  generation {generation:3d}  cost {np.median(costs):6.3f}", flush=True)

        # with a clock the phase parameters have no effect and would drift freely, so they are fixed
        std = INITIAL_STD * (np.where(PHASE_PARAMETERS, 0.0, 1.0) if clock else np.where(PHASE_PARAMETERS, 1.0, 0.5))
        mean = minimise(cost, mean, std, generations=generations, rng=rng, population=population, report=report)
    # rounded before evaluation, so that the stored parameters are the ones evaluated
    return Gait.from_parameters(np.round(mean, 4))


def evaluate_gait(gait: Gait, task: str, *, episodes: int = 32, threads: int = 1) -> tuple[float, float, float]:
    """Share of episodes that reach the goal, median steps until then, share of ants on their backs at the time limit."""
    env = BatchedEnv(COLLECTION_IDS[task], episodes, threads=threads)
    follower, rng = WaypointFollower.for_task(task, gait), np.random.default_rng(0)
    state, arrived = env.reset(range(episodes)), np.full(episodes, np.inf)
    while not env.done.all():
        action = np.clip(follower(state) + ACTION_NOISE * rng.standard_normal((episodes, 8)), -1.0, 1.0)
        state, reward, _, _ = env.step(action)
        arrived = np.where(reward > 0, np.minimum(arrived, env.elapsed), arrived)
    env.close()
    return float(np.isfinite(arrived).mean()), float(np.median(arrived)), float((upright(state) < 0).mean())


def main(arguments: list[str] | None = None) -> None:
    """Command line: search, evaluate in three mazes, print the parameters."""
    parser = argparse.ArgumentParser(description="find a gait for D4RL's ant by CMA-ES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generations", type=int, default=60, help="with a clock, then as many without (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="MuJoCo threads (default: 1)")
    options = parser.parse_args(arguments)
    gait = search(seed=options.seed, generations=options.generations, threads=options.threads)
    ground = FlatGround(64, options.threads)
    found = simulate_walk([gait], ground, np.random.default_rng(1), steps=300, clock=False, noise=ACTION_NOISE)
    print(f"speed {found.speed[0]:.2f} m/s, drift {found.drift[0]:.2f} m/s, on their backs after 30 s {found.fallen[0]:.0%}")
    for task in ("umaze", "medium-diverse", "large-diverse"):
        success, steps, fallen = evaluate_gait(gait, task, threads=options.threads)
        print(f"{task}: {success:.0%} arrive, median {steps:.0f} steps, {fallen:.0%} on their backs at the end")
    print(f"gait: {gait.parameters().tolist()}")


if __name__ == "__main__":
    main()
