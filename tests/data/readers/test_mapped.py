"""Files with other names than D4RL's, read by a mapping: the same transitions as from the arrays themselves."""

import sys

import h5py
import numpy as np
import pytest
import yaml

from jacrec import cli
from jacrec.data import from_arrays, load
from jacrec.data.catalog import describe
from jacrec.data.readers.mapped import packaged_mappings, read_mapping

LENGTHS = [4, 3, 5]
N = sum(LENGTHS)
LAST = np.isin(np.arange(N), np.cumsum(LENGTHS) - 1)
PARTS = ("state", "action", "reward", "next_state", "next_action", "terminal", "has_next_action", "episode")


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    terminal = LAST & (np.arange(N) < 7)
    return {
        "observations": rng.standard_normal((N, 3)),
        "actions": rng.uniform(-2, 2, (N, 2)),
        "rewards": rng.standard_normal(N),
        "terminals": terminal,
    }


def same(found, expected):
    for part in PARTS:
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
    assert found.info.action_box == expected.info.action_box


def write_mapping(folder, **content):
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


NAMES = dict(observations=["pos", "vel"], actions="u", rewards="r", terminals="fell", action_low=-2, action_high=[2.0, 2.0])
ENDS = {
    "lengths": LENGTHS,
    "starts": np.cumsum([0, *LENGTHS[:-1]]),
    "episode": np.repeat([7, 9, 8], LENGTHS),
    "ends": LAST,
    "timeouts": LAST & (np.arange(N) >= 7),
}


@pytest.mark.parametrize("ending", ENDS)
@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_arrays_of_other_names(tmp_path, arrays, ending, suffix):
    observations = arrays["observations"]
    named = {"pos": observations[:, 0], "vel": observations[:, 1:], "u": arrays["actions"], "r": arrays["rewards"][:, None]}
    named |= {"fell": arrays["terminals"], "end": ENDS[ending]}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez(path, **named)
    else:
        with h5py.File(path, "w") as file:
            for key, value in named.items():
                file[key] = value
    mapping = write_mapping(tmp_path, **NAMES, **{ending: "end"}, env_id="Mine-v0", scores=[-3, 5])
    expected = from_arrays(**arrays, lengths=LENGTHS, action_low=-2, action_high=(2, 2))
    data = load(path, mapping=mapping)
    same(data, expected)
    assert (data.info.env_id, data.info.ref_min, data.info.ref_max, data.info.source) == ("Mine-v0", -3, 5, path.name)
    assert describe(path, mapping=mapping).episodes == 3
    other = load(path, mapping=mapping, env_id="Other-v0", action_low=-4, action_high=4)
    assert (other.info.env_id, str(other.info.action_box)) == ("Other-v0", "[-4, 4]")


def test_neorl2(tmp_path, arrays):
    following = np.roll(arrays["observations"], -1, 0)
    np.savez(
        tmp_path / "Pipeline-train.npz",
        obs=arrays["observations"],
        next_obs=following,
        action=arrays["actions"] / 2,
        reward=arrays["rewards"][:, None],
        done=arrays["terminals"][:, None],
        index=ENDS["starts"],
    )
    own = arrays | {"actions": arrays["actions"] / 2}
    data = load(str(tmp_path / "Pipeline-train.npz"), mapping="neorl2")
    same(data, from_arrays(**own, lengths=LENGTHS, next_observations=following))


@pytest.mark.parametrize("pieces", [1, 2])
def test_lerobot(tmp_path, arrays, pieces):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, pip install 'jacrec[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    array, float32, list_, table = pa.array, pa.float32, pa.list_, pa.table

    folder = tmp_path / "set"
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    (folder / "meta/tasks.parquet").write_bytes(b"is not read")
    for i, rows in enumerate(np.array_split(np.arange(N), pieces)):
        columns = {
            "observation.state": array(arrays["observations"][rows].tolist(), list_(float32())),
            "action": array(np.float32(arrays["actions"][rows] / 2).tolist(), list_(float32(), 2)),
            "next.reward": np.float32(arrays["rewards"][rows]),
            "next.success": arrays["terminals"][rows],
            "episode_index": ENDS["episode"][rows],
        }
        parquet.write_table(table(columns), folder / f"data/chunk-000/file-{i:03d}.parquet")
    own = arrays | {"actions": np.float32(arrays["actions"] / 2), "observations": np.float32(arrays["observations"])}
    data = load(str(folder), mapping="lerobot")
    same(data, from_arrays(**own, lengths=LENGTHS))
    if pieces == 1:
        same(load(folder / "data/chunk-000/file-000.parquet", mapping="lerobot"), data)
        ragged = table({"observation.state": array([[1.0], [1.0, 2.0]], list_(float32()))})
        parquet.write_table(ragged, tmp_path / "ragged.parquet")
        with pytest.raises(ValueError, match=r"observation\.state: expected lists of one length, got lengths from 1 to 2"):
            load(tmp_path / "ragged.parquet", mapping="lerobot")
        absent = table({"observation.state": array([[1.0], None], list_(float32()))})
        parquet.write_table(absent, tmp_path / "absent.parquet")
        with pytest.raises(ValueError, match=r"observation\.state: expected a value in every row, got 1 rows without"):
            load(tmp_path / "absent.parquet", mapping="lerobot")
        (tmp_path / "broken.parquet").write_bytes(b"PAR1...")
        with pytest.raises(ValueError, match=r"broken\.parquet: expected a Parquet file"):
            load(tmp_path / "broken.parquet", mapping="lerobot")


def test_parquet_without_its_package_or_a_mapping(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    assert cli.main(["data", "show", str(path)]) == 2
    assert "--mapping FILE" in capsys.readouterr().err
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["train", str(path), "--mapping", "lerobot"]) == 2
    assert "pip install 'jacrec[parquet]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("observations: o", "got observations: actions is missing"),
        ("{observations: o, actions: a, rewards: r, reward: x}", "reward is unknown"),
        ("{observations: o, actions: a, rewards: 3}", "expected text at rewards, got 3"),
        ("{observations: o, actions: a, rewards: r, ends: e, starts: s}", "expected at most one of .*, got ends and starts"),
        ("{observations: o, actions: a, rewards: r, scores: [3, 1]}", r"scores: expected .*, got \[3, 1\]"),
        ("[", "expected YAML"),
        ("text", "expected a mapping"),
    ],
)
def test_mistakes_in_a_mapping(tmp_path, content, message):
    path = tmp_path / "mapping.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        read_mapping(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": "gone"}, "expected 'gone', as the mapping says, got none"),
        ({"observations": ["pos", "short"]}, "expected arrays of one length"),
        ({"episode": "mixed"}, "expected the rows of an episode one after another, got 2 episodes in 12 pieces"),
        ({"starts": "vel"}, "expected row numbers from 0 on"),
        ({"terminals": None}, "expected the last row of each episode to be marked"),
    ],
)
def test_files_that_a_mapping_does_not_fit(tmp_path, arrays, changes, message):
    path, (o, a, r, t) = tmp_path / "x.npz", arrays.values()
    np.savez(path, pos=o[:, 0], vel=o[:, 1:], u=a, r=r, fell=t, short=o[:3], mixed=np.arange(N) % 2)
    mapping = write_mapping(tmp_path, **(NAMES | changes))
    with pytest.raises(ValueError, match=message):
        load(path, mapping=mapping)


def test_packaged_mappings_are_valid():
    assert sorted(packaged_mappings()) == ["lerobot", "neorl2"]
    for name in packaged_mappings():
        assert read_mapping(name).observations
    with pytest.raises(FileNotFoundError, match=r"expected a YAML file or one of lerobot, neorl2, got nothing\.yaml"):
        read_mapping("nothing.yaml")


def test_a_name_given_twice_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("observations: x\nactions: a\nrewards: r\nactions: b\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected each key once, got 'actions' in lines 2 and 4"):
        read_mapping(tmp_path / "own.yaml")
