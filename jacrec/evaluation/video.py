"""Videos of the base policy next to another contestant: GIF, or MP4 if imageio-ffmpeg is installed.

Rendering runs in a subprocess: `python -m jacrec.evaluation.video REQUEST`.
"""

import inspect
import json
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from jacrec.envs.actions import played_box
from jacrec.envs.physics import make_env
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.contestant import environment_id, make_controller, with_dynamics, with_sampling
from jacrec.evaluation.episodes import Controller, PolicyController
from jacrec.evaluation.rendering import run_renderer, with_remedy
from jacrec.experimental.config import ExperimentalConfig, read_mpc_config
from jacrec.models.dynamics.sampler import Sampler
from jacrec.planners import PlannerConfig
from jacrec.training.run import Run, load_run
from jacrec.util.files import user_path

STEM, SIZE, FPS = "episode", 240, 25


@dataclass(frozen=True)
class Video:
    """Outcome of `record_video`."""

    path: Path | None
    reason: str
    """why there is no video, and the remedy; empty if there is one"""


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
) -> Video:
    """Record the start of the first episode, with the base policy on the left and a contestant of `config` on the right.

    Args:
        stem: file name without its suffix.
        label: caption of the right side.
        who: the contestant on the right: mpc, h0 or a planner, as in `config.controller`.
        dynamics: folder of a world model to use instead of the run's own.
        again: replace an existing video.
        seconds: simulated time.
        timeout: of the subprocess, in seconds.
    """
    folder = user_path(folder)
    path = folder / f"{stem}{'.mp4' if find_spec('imageio_ffmpeg') else '.gif'}"
    if path.is_file() and not again:
        return Video(path, "")
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
    reason = run_renderer([sys.executable, "-m", "jacrec.evaluation.video", request], timeout)
    return Video(path, "") if reason is None else Video(None, with_remedy(reason))


def render_video(run: Run, config: EvalConfig, path: Path, seconds: float, label: str = "MPC", who: str = "mpc") -> None:
    """Play, render and write the video in this process; needs a rendering backend."""
    import imageio.v3 as iio

    torch.set_num_threads(config.threads)
    sides = {"base": PolicyController(run.policy), label: make_controller(run, config.controller(who), 1)}
    clips = [_play(name, controller, run, config, seconds) for name, controller in sides.items()]
    length = max(map(len, clips))
    # the shorter episode freezes on its last frame
    left, right = ([*clip, *[clip[-1]] * (length - len(clip))] for clip in clips)
    frames = np.concatenate([np.stack(left), np.stack(right)], 2)
    part = path.with_name(f"{path.stem}-part{path.suffix}")
    if path.suffix == ".gif":
        iio.imwrite(part, frames, duration=1000 / FPS, loop=0)
    else:
        iio.imwrite(part, frames, fps=FPS, macro_block_size=8)
    part.replace(path)


def _play(name: str, controller: Controller, run: Run, config: EvalConfig, seconds: float) -> list[np.ndarray]:
    env_id = environment_id(run, config.env_id)
    env = _rendered_env(env_id, config)
    box = played_box(env.action_space, env_id, run.info.action_box, config.action_bounds)
    simulator: Any = env.unwrapped
    _use_tracking_camera(simulator)
    step_time = getattr(simulator, "dt", 1 / FPS)
    every = max(1, round(1 / (FPS * step_time)))
    observation, _ = env.reset(seed=config.seeds[0])
    controller.new_episode()
    frames, total, over, step = [], 0.0, False, 0
    while not over and step * step_time < seconds:
        if step % every == 0:
            frames.append(_caption(env.render(), f"{name}  step {step}  return {total:.0f}"))
        action = controller.act(np.asarray(observation)[None])[0]
        observation, reward, terminated, truncated, _ = env.step(box.from_unit(action))
        total, over, step = total + float(reward), terminated or truncated, step + 1
    frames.append(_caption(env.render(), f"{name}  step {step}  return {total:.0f}{'  (ended)' if over else ''}"))
    env.close()
    return frames


def _rendered_env(env_id: str, config: EvalConfig) -> gymnasium.Env:
    """The environment, rendered at SIZE where its constructor lets choose: only those of MuJoCo do."""
    options: dict[str, Any] = {"physics": config.physics, "max_episode_steps": config.max_episode_steps}
    env = make_env(env_id, **options)
    parameters = inspect.signature(type(env.unwrapped).__init__).parameters
    env.close()
    sized = "width" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    size: dict[str, Any] = {"width": SIZE, "height": SIZE} if sized else {}
    return make_env(env_id, **options, render_mode="rgb_array", **size)


def _use_tracking_camera(simulator: Any) -> None:
    """Use the model's tracking camera if it has one; gymnasium's default camera is static."""
    model, renderer = getattr(simulator, "model", None), getattr(simulator, "mujoco_renderer", None)
    if model is not None and renderer is not None:
        import mujoco

        lib: Any = mujoco  # untyped bindings
        camera = lib.mj_name2id(model, int(lib.mjtObj.mjOBJ_CAMERA), "track")
        if camera >= 0:
            renderer.camera_id = camera


def _caption(frame: Any, text: str) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray(frame)
    if image.height != SIZE:
        image = image.resize((round(image.width * SIZE / image.height), SIZE))
    ImageDraw.Draw(image).text((6, 4), text, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)


def main(request: str) -> None:
    """Render the video described by a JSON request of `record_video`."""
    content = json.loads(request)
    settings = content["config"]
    controllers = {
        "mpc": read_mpc_config(settings["mpc"]),
        "experimental": ExperimentalConfig(**settings["experimental"]),
        "planner": PlannerConfig(**settings["planner"]),
    }
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["dynamics"].items()}
    sampler = Sampler(**fields)
    settings |= controllers | {"dynamics": sampler} | {"contestants": tuple(settings["contestants"])}
    run = load_run(content["run"])
    run = with_dynamics(run, content["dynamics"]) if content["dynamics"] else run
    run = with_sampling(run, sampler)
    render_video(run, EvalConfig(**settings), Path(content["path"]), content["seconds"], content["label"], content["who"])


if __name__ == "__main__":
    main(sys.argv[1])
