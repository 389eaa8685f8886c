"""Files that the libraries themselves write, read without naming the library."""

import numpy as np
import pytest
import torch

from jacrec.adapters import from_d3rlpy, from_file, from_sb3
from jacrec.envs.actions import ActionBox


def expect_same(parts, theirs):
    for ours, other in ((parts.policy, theirs.policy), (parts.critic, theirs.critic)):
        assert type(ours) is type(other)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in ours.state_dict().items())
    assert (parts.discount, parts.action_box) == (theirs.discount, theirs.action_box)


@pytest.mark.parametrize("name", ["SAC", "TD3", "DDPG", "TQC"])
def test_stable_baselines3(name, tmp_path):
    library = pytest.importorskip("sb3_contrib" if name == "TQC" else "stable_baselines3", reason="pip install 'jacrec[sb3]'")
    kind = getattr(library, name)
    model = kind("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16, 16]}, gamma=0.95, buffer_size=10)
    model.save(tmp_path / "model")
    expect_same(from_file(tmp_path / "model.zip"), from_sb3(model))
    with pytest.raises(ValueError, match=r"discount: expected none for .*model\.zip, which records it, got 0\.9"):
        from_file(tmp_path / "model.zip", discount=0.9)
    with pytest.raises(ValueError, match=r"stand for \[-1, 1\], as in the data, got one for \[-2, 2\]"):
        from_file(tmp_path / "model.zip", action_box=ActionBox())


def test_statistics_of_stable_baselines3(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install 'jacrec[sb3]'")
    venv = sb3.common.vec_env.VecNormalize(sb3.common.env_util.make_vec_env("Pendulum-v1"))
    model = sb3.SAC("MlpPolicy", venv, policy_kwargs={"net_arch": [16, 16]}, learning_starts=300).learn(200)
    model.save(tmp_path / "model")
    venv.save(str(tmp_path / "statistics.pkl"))
    expect_same(from_file(tmp_path / "model.zip", vec_normalize=tmp_path / "statistics.pkl"), from_sb3(model))
    with pytest.raises(ValueError, match="expected a pickled VecNormalize, got"):
        from_file(tmp_path / "model.zip", vec_normalize=tmp_path / "model.zip")
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        from_file(tmp_path / "model.zip", vec_normalize=tmp_path / "none.pkl")


def test_other_algorithms_of_stable_baselines3(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install 'jacrec[sb3]'")
    sb3.PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo")
    with pytest.raises(
        ValueError, match=r"expected a model of SAC, TD3, DDPG or TQC, got one with a policy of stable_baselines3"
    ):
        from_file(tmp_path / "ppo.zip")


def test_d3rlpy(tmp_path):
    d3rlpy = pytest.importorskip("d3rlpy", reason="pip install 'jacrec[d3rlpy]'")
    algo = d3rlpy.algos.ReBRACConfig(
        gamma=0.9, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(np.ones(3), np.full(3, 2.0))
    ).create(device=False)
    algo.create_impl((3,), 2)
    algo.save(tmp_path / "model.d3")
    expect_same(from_file(tmp_path / "model.d3"), from_d3rlpy(algo))
    with pytest.raises(ValueError, match=r"got str; read a file with jacrec\.adapters\.from_file\(path\)"):
        from_d3rlpy(str(tmp_path / "model.d3"))
    algo.save_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: expected what d3rlpy's algo\.save wrote, got weights alone"):
        from_file(tmp_path / "model.pt")
    (tmp_path / "broken.d3").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="expected a model that d3rlpy can read, got"):
        from_file(tmp_path / "broken.d3")
