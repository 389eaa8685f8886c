"""Studies of D4RL's tasks on made data."""

import pytest

from jacrec.commands.sweep import run
from jacrec.data.behaviour.make import available_kinds
from jacrec.data.readers.load import load
from jacrec.studies.made import made_data, with_made_data
from jacrec.studies.spec import find_spec, parse_study, read_spec, read_study_config
from jacrec.training.config import rebrac_config


@pytest.mark.parametrize("spec", ["table-1", "table-2"])
def test_every_task_of_the_paper_can_be_made(spec):
    study = read_spec(find_spec(spec))
    made = {task: made_data(task, own) for task, own in study.tasks.items()}
    assert all(data is not None and data.kind in available_kinds(data.env) for data in made.values())
    assert len({data.id for data in made.values() if data}) == len(study.tasks)
    assert with_made_data(study).name == f"{spec}-made"


def test_settings_stay_those_published_for_the_task():
    study = with_made_data(parse_study({"name": "x", "tasks": ["walker2d-expert", "walker2d-random"], "seeds": [3]}))
    config = study.train_config("walker2d-expert", 3)
    assert config.rebrac == rebrac_config("walker2d-expert-v2")
    assert config.data == study.tasks["walker2d-expert"].data == "jacrec/walker2d-expert-sac-v0"
    assert study.tasks["walker2d-random"].data == "jacrec/walker2d-random-v0"


def test_a_study_of_other_data_is_refused():
    with pytest.raises(ValueError, match="expected tasks of D4RL"):
        with_made_data(parse_study({"name": "x", "tasks": {"mine": {"data": "mine.hdf5", "env_id": "Hopper-v4"}}}))


def test_missing_sets_are_made_and_the_sweep_runs_on_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(
        "{name: tiny, tasks: [hopper-expert], seeds: [1], stages: [reward], contestants: {}, "
        "training: {reward: {hidden: [8], updates: 2, batch_size: 8}}}"
    )
    assert run(["spec.yaml", "--made", "--dry-run"]) == 1
    assert "jacrec/hopper-expert-sac-v0" in capsys.readouterr().out
    assert run(["spec.yaml", "--made", "--made-steps", "300", "--workers", "1"]) == 0
    data = load("jacrec/hopper-expert-sac-v0")
    assert len(data) == 300
    assert read_study_config("studies/tiny-made").tasks["hopper-expert"].data == data.info.name
    made = (tmp_path / "minari").stat().st_mtime_ns
    assert run(["studies/tiny-made"]) == 0
    assert (tmp_path / "minari").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match=r"expected 200 steps, got a set of 300; .*--made-steps 300"):
        run(["spec.yaml", "--made", "--made-steps", "200", "--out", "other", "--workers", "1"])
    assert run(["studies/tiny-made", "--made", "--made-steps", "300"]) == 0
