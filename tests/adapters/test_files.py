"""Files that the libraries themselves write, read without naming the library."""

import io
import math
import pickle
import zipfile

import numpy as np
import pytest
import torch

from jacrec.adapters import from_d3rlpy, from_file, from_sb3
from jacrec.adapters.weights import load_weights
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


def test_what_stable_baselines3_says_is_one_line_without_torchs_advice(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install 'jacrec[sb3]'")
    sb3.DDPG("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10).save(tmp_path / "model")
    weights = io.BytesIO()
    torch.save({"policy": object()}, weights)
    with zipfile.ZipFile(tmp_path / "model.zip") as source, zipfile.ZipFile(tmp_path / "wrong.zip", "w") as target:
        for name in source.namelist():
            target.writestr(name, weights.getvalue() if name == "policy.pth" else source.read(name))
    with pytest.raises(
        ValueError, match="expected a model that stable_baselines3 can read, got UnpicklingError: other objects"
    ) as error:
        from_file(tmp_path / "wrong.zip")
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


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
    flipped = pickle.loads((tmp_path / "model.d3").read_bytes())
    weights = bytearray(flipped["torch"])
    at = weights.index(algo.impl.policy.state_dict()["_fc.weight"].numpy().tobytes())
    weights[at + 2] ^= 1
    (tmp_path / "flipped.d3").write_bytes(pickle.dumps(flipped | {"torch": bytes(weights)}))
    with pytest.raises(ValueError, match=r"flipped\.d3: expected a model that d3rlpy can read, got BadZipFile: .*CRC"):
        from_file(tmp_path / "flipped.d3")
    (tmp_path / "broken.d3").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="expected a model that d3rlpy can read, got"):
        from_file(tmp_path / "broken.d3")


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.zip"])
def test_archives_that_are_damaged(name, tmp_path):
    path = tmp_path / name
    torch.save({"actor": torch.zeros(300)}, path)
    if name == "model.zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("_stable_baselines3_version", "2.9")
            archive.writestr("data", "[]")
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    for damaged in (
        whole[:end] + whole[end:].replace(whole[end + 12 : end + 20], b"\xff" * 8),
        whole[: len(whole) // 2],
        whole,
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="expected"):
            from_file(path)


def test_a_flipped_bit_of_a_weight_is_not_another_policy(tmp_path):
    path, options = tmp_path / "good.pt", {"state_mean": 0.0, "state_std": 1.0}

    def layers(d, n):
        return {"net.0.weight": torch.full((8, d), 7.0), "net.0.bias": torch.ones(8)} | {
            "net.2.weight": torch.ones(n, 8),
            "net.2.bias": torch.ones(n),
        }

    torch.save({"actor": layers(3, 2), "critic_1": layers(5, 1), "critic_2": layers(5, 1)}, path)
    assert from_file(path, **options).state_dim == 3
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((8,), 7.0).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"good\.pt: expected tensors that torch\.save wrote, got .*CRC"):
        from_file(path, **options)


def test_archives_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"actor": torch.ones(3)}, tmp_path / "weights.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load_weights(tmp_path / "weights.pt")["actor"], torch.ones(3))


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (torch.full((2, 5), math.nan), "expected finite numbers"),
        (torch.zeros(2, 5, dtype=torch.complex64), "expected arrays of real numbers, got Tensor .torch.complex64"),
        (torch.zeros(2, 5).to_sparse(), "expected arrays of real numbers"),
        (torch.zeros(2, 5, device="meta"), "expected arrays of real numbers"),
        ("weights", "expected arrays of real numbers, got str"),
        (None, "expected arrays of real numbers, got NoneType"),
        (torch.zeros(10), r"layers: expected weights \(out, in\)"),
        (torch.zeros(2, 0), r"layers: expected weights \(out, in\)"),
    ],
)
def test_entries_that_are_no_weights(weight, match, tmp_path):
    sizes = {"actor": (3, 2), "critic_1": (5, 1), "critic_2": (5, 1)}
    states = {
        name: {"net.0.weight": torch.ones(5, d), "net.0.bias": torch.ones(5), "net.2.weight": torch.ones(n, 5)}
        | {"net.2.bias": torch.ones(n)}
        for name, (d, n) in sizes.items()
    }
    options = {"state_mean": 0.0, "state_std": 1.0}
    torch.save(states, tmp_path / "good.pt")
    assert from_file(tmp_path / "good.pt", **options).state_dim == 3
    states["actor"]["net.2.weight"] = weight
    torch.save(states, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=match):
        from_file(tmp_path / "wrong.pt", **options)
    for actor in ({}, {5: torch.ones(3)}):
        torch.save(states | {"actor": actor}, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match="expected"):
            from_file(tmp_path / "wrong.pt", **options)
