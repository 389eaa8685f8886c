"""Videos of environments beside MuJoCo's, and what is said where there can be none."""

import gymnasium
import numpy as np
import pytest
from PIL import Image

from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.rendering import REMEDY, with_remedy
from jacrec.evaluation.video import SIZE, render_video
from jacrec.training.run import load_run


class Drawn(gymnasium.Env):
    """Draws by itself, and its constructor takes no size."""

    metadata = {"render_modes": ("rgb_array",), "render_fps": 30}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(11, np.float32), {}

    def step(self, action):
        return self.np_random.standard_normal(11).astype(np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((2 * SIZE, 3 * SIZE, 3), 99, np.uint8)


def test_an_environment_that_draws_by_itself_has_a_video(trained, tmp_path):
    gymnasium.register("Drawn-v0", Drawn, max_episode_steps=20)
    try:
        render_video(load_run(trained), EvalConfig(env_id="Drawn-v0", episodes=1), tmp_path / "x.gif", seconds=0.5)
    finally:
        del gymnasium.registry["Drawn-v0"]
    with Image.open(tmp_path / "x.gif") as film:
        assert film.size == (3 * SIZE, SIZE)  # two sides


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("ImportError: Cannot initialize a EGL device display", REMEDY),
        ("mujoco.FatalError: gladLoadGL error", REMEDY),
        ("the process was killed by signal 11", REMEDY),
        ("ModuleNotFoundError: No module named 'pygame'", "pip install pygame"),
        ('gymnasium.error.DependencyNotInstalled: pygame is not installed, run `pip install "gymnasium[classic-control]"`', ""),
        ("TypeError: PendulumEnv.__init__() got an unexpected keyword argument 'width'", ""),
    ],
)
def test_opengl_is_blamed_for_its_own_failures_alone(reason, advice):
    assert with_remedy(reason) == (f"{reason}; {advice}" if advice else reason)
