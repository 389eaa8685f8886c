"""Base beside MPC on film: a GIF, or an MP4 where imageio-ffmpeg is installed. Filming runs in a process of its own."""

import json
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jacrec.envs.physics import make_env
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.contestant import make_controller, with_dynamics, with_settings
from jacrec.evaluation.episodes import Controller, PolicyController
from jacrec.evaluation.rendering import REMEDY, run_apart
from jacrec.experimental.config import ExperimentalConfig, read_mpc_config
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.training.run import Run, load_run

STEM, SIZE, FPS = "episode", 240, 25


@dataclass(frozen=True)
class Film:
    """Outcome of `record_video`."""

    path: Path | None
    reason: str
    """why there is none, with the remedy; empty where there is one"""


def record_video(
    run: Run,
    config: EvalConfig,
    folder: Path,
    *,
    stem: str = STEM,
    label: str = "MPC",
    who: str = "mpc",
    dynamics: Path | None = None,
    again: bool = False,
    seconds: float = 8.0,
    timeout: float = 600.0,
) -> Film:
    """Film the first `seconds` of simulated time of the first episode, base on the left, a contestant of `config` on the right.

    Args:
        stem: the file's name without its ending.
        label: what the right side is called.
        who: mpc, h0 or a planner, as `config.controller` has it.
        dynamics: folder of another world model to imagine in than the run's own.
        again: replace a film of that name.
    """
    path = folder / f"{stem}{'.mp4' if find_spec('imageio_ffmpeg') else '.gif'}"
    if path.is_file() and not again:
        return Film(path, "")
    folder.mkdir(parents=True, exist_ok=True)
    request = json.dumps(
        {
            "run": str(run.path),
            "dynamics": dynamics and str(dynamics),
            "config": asdict(config),
            "path": str(path),
            "label": label,
            "who": who,
            "seconds": seconds,
        }
    )
    reason = run_apart([sys.executable, "-m", "jacrec.evaluation.video", request], timeout)
    return Film(path, "") if reason is None else Film(None, f"{reason}; {REMEDY}")


def film(run: Run, config: EvalConfig, path: Path, seconds: float, label: str = "MPC", who: str = "mpc") -> None:
    """Play, render and write; needs a rendering backend."""
    import imageio.v3 as iio

    torch.set_num_threads(config.threads)
    sides = {"base": PolicyController(run.policy), label: make_controller(run, config.controller(who), 1)}
    reels = [_play(name, controller, run, config, seconds) for name, controller in sides.items()]
    length = max(map(len, reels))
    # an episode that ended stands still on its last picture
    left, right = ([*reel, *[reel[-1]] * (length - len(reel))] for reel in reels)
    frames = np.concatenate([np.stack(left), np.stack(right)], 2)
    part = path.with_name(f"{path.stem}-part{path.suffix}")
    if path.suffix == ".gif":
        iio.imwrite(part, frames, duration=1000 / FPS, loop=0)
    else:
        iio.imwrite(part, frames, fps=FPS, macro_block_size=8)
    part.replace(path)


def _play(name: str, controller: Controller, run: Run, config: EvalConfig, seconds: float) -> list[np.ndarray]:
    env = make_env(
        config.env_id or run.info.env_id or "", physics=config.physics, render_mode="rgb_array", width=SIZE, height=SIZE
    )
    simulator: Any = env.unwrapped
    _follow(simulator)
    step_time = getattr(simulator, "dt", 1 / FPS)
    every = max(1, round(1 / (FPS * step_time)))
    observation, _ = env.reset(seed=config.seeds[0])
    controller.new_episode()
    frames, total, over, step = [], 0.0, False, 0
    while not over and step * step_time < seconds:
        if step % every == 0:
            frames.append(_caption(env.render(), f"{name}  step {step}  return {total:.0f}"))
        action = controller.act(np.asarray(observation)[None])[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over, step = total + float(reward), terminated or truncated, step + 1
    frames.append(_caption(env.render(), f"{name}  step {step}  return {total:.0f}{'  (ended)' if over else ''}"))
    env.close()
    return frames


def _follow(simulator: Any) -> None:
    """Let the model's own tracking camera film, where it has one: gymnasium's stands still."""
    import mujoco

    lib: Any = mujoco  # the bindings declare no types
    model, renderer = getattr(simulator, "model", None), getattr(simulator, "mujoco_renderer", None)
    if model is not None and renderer is not None:
        camera = lib.mj_name2id(model, int(lib.mjtObj.mjOBJ_CAMERA), "track")
        if camera >= 0:
            renderer.camera_id = camera


def _caption(picture: Any, text: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((6, 4), text, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def main(request: str) -> None:
    """What the process of its own does."""
    asked = json.loads(request)
    settings = asked["config"]
    controllers = {
        "mpc": read_mpc_config(settings["mpc"]),
        "experimental": ExperimentalConfig(**settings["experimental"]),
        "planner": PlannerConfig(**settings["planner"]),
    }
    named: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["dynamics"].items()}
    sampler = Sampler(**named)
    settings |= controllers | {"dynamics": sampler} | {"contestants": tuple(settings["contestants"])}
    run = load_run(asked["run"])
    run = with_dynamics(run, asked["dynamics"]) if asked["dynamics"] else run
    run = with_settings(run, sampler)
    film(run, EvalConfig(**settings), Path(asked["path"]), asked["seconds"], asked["label"], asked["who"])


if __name__ == "__main__":
    main(sys.argv[1])
