"""Arrays that are no arrays of real numbers, and other input of `from_arrays` that used to be bent into shape."""

import numpy as np
import pytest
import torch

from jacrec.data import from_arrays
from jacrec.training.config import TrainConfig
from jacrec.training.run import train

N = 7


def given(**changes):
    """Valid arguments of `from_arrays`, some of them replaced."""
    rng = np.random.default_rng(0)
    valid = {
        "observations": rng.standard_normal((N, 3)),
        "actions": rng.uniform(-1, 1, (N, 2)),
        "rewards": rng.standard_normal(N),
        "terminals": np.zeros(N, bool),
        "lengths": [4, 3],
    }
    return valid | changes


def masked(shape, row):
    """An array with a masked number in a row."""
    mask = np.zeros(shape, bool)
    mask[row] = True
    return np.ma.masked_array(np.zeros(shape), mask)


@pytest.mark.parametrize(
    "lengths",
    [[4.5, 2.5], [10.7, -3.7], [np.nan, 7], [np.inf], [[4, 3]], [True] * N, 7, ["4", "3"], [2**63 - 1, 2**63 - 1, 9], [1e300]],
)
def test_lengths_are_whole_numbers(lengths):
    with pytest.raises(ValueError, match=r"^arrays: lengths: expected .*, got "):
        from_arrays(**given(lengths=lengths))


@pytest.mark.parametrize("lengths", [np.array([4, 3], np.int8), [4.0, 3.0], (4, 3)])
def test_whole_numbers_of_any_type_are_lengths(lengths):
    assert np.array_equal(from_arrays(**given(lengths=lengths)).episode, from_arrays(**given()).episode)


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("observations", masked((N, 3), (4, 1)), "masked values in row 4"),
        ("rewards", masked(N, 5), "masked values in row 5"),
        ("terminals", masked(N, 2), "masked values in row 2"),
        ("next_observations", masked((N, 3), (6, 0)), "masked values in row 6"),
        ("actions", list(masked((N, 2), (3, 0))), "masked values in row 3"),
        ("rewards", [0.0, np.ma.masked, *[0.0] * 5], "masked values in row 1"),
        ("observations", np.zeros((N, 3), complex), "type complex128"),
        ("actions", np.zeros((N, 2)) + 1j, "type complex128"),
        ("rewards", ["1"] * N, "type <U1"),
        ("rewards", [None] * N, "type object"),
        ("terminals", np.zeros(N, "datetime64[s]"), r"type datetime64\[s\]"),
        ("observations", np.zeros(N, [("a", "f4")]), "type"),
        ("observations", [[0.0, 0.0]] * 6 + [[0.0]], "list"),
        ("actions", torch.zeros(N, 2, requires_grad=True), "Tensor"),
        ("rewards", np.zeros((N, 2)), r"\(7, 2\)"),
        ("terminals", np.zeros((1, N)), r"\(1, 7\)"),
        ("observations", np.zeros((N, 0)), "none"),
        ("actions", np.zeros((N, 0)), "none"),
    ],
)
def test_only_real_numbers_are_numbers(key, value, got):
    with pytest.raises(ValueError, match=rf"^arrays: {key}: expected .*, got .*{got}"):
        from_arrays(**given(**{key: value}))


def test_arrays_without_masked_values_and_tensors_are_read():
    expected = from_arrays(**given())
    plain = given()
    same = from_arrays(
        observations=np.ma.masked_array(plain["observations"], False),
        actions=torch.as_tensor(plain["actions"]),
        rewards=plain["rewards"][:, None].astype(">f8"),
        terminals=plain["terminals"][:, None].astype(np.int8),
        lengths=plain["lengths"],
    )
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(same, name), value), name


@pytest.mark.parametrize("env_id", [5, b"Hopper-v4", ["Hopper-v4"], 0])
def test_an_environment_is_named_by_text(env_id):
    with pytest.raises(ValueError, match=r"^arrays: env_id: expected a gymnasium id .*, got "):
        from_arrays(**given(env_id=env_id))


def test_data_without_successors_cannot_be_trained_on(tmp_path):
    alone = given(terminals=np.ones(N, bool), lengths=None)
    data = from_arrays(**alone)
    assert (len(data), len(data.for_td())) == (0, N)
    with pytest.raises(ValueError, match=r"^arrays: expected rows with a known successor .*, got 0 and 0; .*next_observations"):
        train(TrainConfig(), tmp_path / "run", data=data, stages=("dynamics", "reward"), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"^arrays: expected rows with a known successor .*, got none"):
        data.statistics()


def test_discrete_actions_are_told():
    with pytest.raises(
        ValueError, match=r"actions: expected shape \(n, width\) with n = 7, got \(7,\); .*discrete actions are not"
    ):
        from_arrays(**given(actions=np.arange(N) % 2))
