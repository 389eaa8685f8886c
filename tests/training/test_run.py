"""A run's folder: training, loading, resuming, and protection against overwriting."""

import gc
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from jacrec.models.networks import RewardModel
from jacrec.training import DynamicsConfig, ReBRACConfig, RewardConfig, TrainConfig, load_run, train
from jacrec.training.run import make_stage, read_record
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.training.streams import derive_seed
from tests.training_data import linear_system

SMALL = TrainConfig(
    data="linear system",
    rebrac=ReBRACConfig(hidden=(16, 16), batch_size=16, updates=60),
    dynamics=DynamicsConfig(hidden=(32, 32), updates=60, batch_size=32, steps=4, eval_samples=2, ema=0.9),
    reward=RewardConfig(hidden=(16, 16), updates=60, batch_size=32),
    seed=5,
    threads=1,
    log_every=20,
    checkpoint_every=15,
)
WEIGHTS = ("actor", "critic", "dynamics", "reward")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{part}.{k}": v for part in WEIGHTS for k, v in load_file(folder / f"{part}.safetensors").items()}


def metrics(folder: Path) -> list[dict]:
    """The metrics lines without the time, sorted by stage and update."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return sorted(lines, key=lambda line: (line["stage"], line["update"]))


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return train(SMALL, tmp_path_factory.mktemp("runs") / "run", data=linear_system(), quiet=True)


def test_load_run_returns_policy_and_world(finished):
    run = load_run(finished)
    data = linear_system()
    state = torch.from_numpy(data.state[:7])
    action = run.policy(state)
    noise = torch.zeros(7, *run.world.dynamics.noise_shape)
    assert action.shape == (7, 2)
    assert run.world.dynamics(state, action, noise).shape == (7, 3)
    assert run.world.reward(state, action).shape == run.world.critic(state, action).shape == (7,)
    assert run.world.discount == SMALL.rebrac.discount
    assert run.config == SMALL
    assert run.info == data.info
    assert all(p.requires_grad for p in run.policy.parameters())


def test_scales_are_computed_on_the_training_episodes(finished):
    run = load_run(finished)
    kept = linear_system().split(SMALL.held_out, derive_seed(SMALL.seed, "held out"))[0]
    torch.testing.assert_close(run.world.dynamics.state_mean, torch.from_numpy(kept.state.mean(0)))
    delta = torch.from_numpy(kept.next_state - kept.state)
    torch.testing.assert_close(run.world.dynamics.out_std, delta.std(0, correction=0))
    assert isinstance(run.world.reward, RewardModel)
    torch.testing.assert_close(run.world.reward.reward_std, torch.from_numpy(kept.reward).std(correction=0))


def test_metrics_lines(finished):
    lines = metrics(finished)
    assert [(line["stage"], line["update"]) for line in lines] == [
        (stage, update) for stage in ("dynamics", "rebrac", "reward") for update in (20, 40, 60)
    ]
    assert {"one_step_rmse", "one_step_rmse_se", "still_rmse", "loss"} <= lines[0].keys()
    assert {"critic_loss", "q", "actor_loss", "bc", "q_policy"} <= lines[3].keys()
    assert {"reward_rmse", "reward_rmse_se", "reward_std"} <= lines[6].keys()
    assert all(math.isfinite(v) for line in lines for k, v in line.items() if k != "stage")


def test_the_record_holds_data_and_versions(finished):
    record = read_record(finished)
    assert record["data"]["transitions"] == 600
    assert record["data"]["env_id"] == "Linear-v0"
    assert record["versions"]["torch"] == str(torch.__version__)
    assert not list(finished.glob("*.part"))


def test_a_finished_run_is_left_unchanged(finished):
    before = (finished / "metrics.jsonl").read_bytes(), weights(finished)
    train(SMALL, finished, data=linear_system(), quiet=True)
    assert (finished / "metrics.jsonl").read_bytes() == before[0]
    assert same_bits(weights(finished), before[1])


@pytest.mark.parametrize("order", [("reward", "rebrac", "dynamics"), ("dynamics",)])
def test_stage_order_and_parallel_stages_do_not_change_the_result(finished, tmp_path, order):
    train(SMALL, tmp_path / "run", data=linear_system(), stages=order[:1], quiet=True)
    if len(order) == 1:
        with pytest.raises(FileNotFoundError, match=r"without actor, critic, reward; .* --stages rebrac reward"):
            load_run(tmp_path / "run")
    train(SMALL, tmp_path / "run", data=linear_system(), parallel_stages=2, quiet=True)
    assert same_bits(weights(tmp_path / "run"), weights(finished))
    assert metrics(tmp_path / "run") == metrics(finished)


def test_seeds_differ(finished, tmp_path):
    train(replace(SMALL, seed=6), tmp_path / "run", data=linear_system(), quiet=True)
    assert not same_bits(weights(tmp_path / "run"), weights(finished))


def test_different_settings_or_data_are_rejected(finished):
    before = weights(finished)
    changed = replace(SMALL, rebrac=replace(SMALL.rebrac, actor_bc_coef=0.7))
    with pytest.raises(ValueError, match=r"got another run: rebrac\.actor_bc_coef = 0\.05 .*, 0\.7 "):
        train(changed, finished, data=linear_system(), quiet=True)
    with pytest.raises(ValueError, match="got another run: data: linear system"):
        train(SMALL, finished, data=linear_system(seed=1), quiet=True)
    assert same_bits(weights(finished), before)


def test_missing_settings_of_an_older_run_take_their_defaults(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    record = read_record(folder)
    assert record["settings"].pop("deterministic") is False
    assert record["settings"]["dynamics"].pop("residual") is False
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    before = (folder / "config.yaml").read_bytes()
    assert train(SMALL, folder, data=linear_system(), quiet=True) == folder
    assert load_run(folder).config == SMALL
    assert (folder / "config.yaml").read_bytes() == before
    with pytest.raises(ValueError, match=r"got another run: deterministic = False .*, True "):
        train(replace(SMALL, deterministic=True), folder, data=linear_system(), quiet=True)
    with pytest.raises(ValueError, match=r"got another run: dynamics\.residual = False .*, True "):
        train(replace(SMALL, dynamics=replace(SMALL.dynamics, residual=True)), folder, data=linear_system(), quiet=True)


def test_a_kill_while_writing_the_record_leaves_a_usable_folder(tmp_path):
    (tmp_path / "config.yaml.part").write_text("settings: {da")
    assert train(
        replace(SMALL, rebrac=replace(SMALL.rebrac, updates=1)), tmp_path, stages=["rebrac"], data=linear_system(), quiet=True
    )


def test_a_foreign_folder_is_rejected(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        train(SMALL, tmp_path, data=linear_system(), quiet=True)
    with pytest.raises(FileNotFoundError, match=r"expected a run, got no config\.yaml; .*`jacrec train`"):
        load_run(tmp_path)


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"^stages: .*'rebrac', 'dynamics', 'reward', got 'critic'"):
        train(SMALL, tmp_path / "run", stages=["critic"], data=linear_system())
    with pytest.raises(ValueError, match=r"^parallel_stages: .*>= 1, got 0"):
        train(SMALL, tmp_path / "run", parallel_stages=0, data=linear_system())
    assert not (tmp_path / "run").exists()


def test_a_failing_callback_stops_the_run_without_losing_updates(finished, tmp_path):
    def on_log(line):
        if line["update"] == 40:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(SMALL, tmp_path / "run", data=linear_system(), parallel_stages=2, quiet=True, on_log=on_log)
    seen = []
    train(SMALL, tmp_path / "run", data=linear_system(), quiet=True, on_log=seen.append)
    assert seen
    assert same_bits(weights(tmp_path / "run"), weights(finished))
    assert metrics(tmp_path / "run") == metrics(finished)


def test_tables_are_freed_after_training(finished, tmp_path, monkeypatch):
    """Immediately, not at the next garbage collection: a process that trains many runs would fill its memory otherwise."""
    tables = []

    def watched(*args):
        stage = make_stage(*args)
        tables.append(weakref.ref(stage.rows if isinstance(stage, ReBRACStage) else stage.examples.rows))
        return stage

    monkeypatch.setattr("jacrec.training.run.make_stage", watched)
    gc.disable()
    try:
        train(SMALL, tmp_path / "run", data=linear_system(), quiet=True)
        assert [table() for table in tables] == [None] * 3
    finally:
        gc.enable()


def test_divergence_raises(tmp_path):
    data = linear_system()
    data.reward[:] = 1e38
    with pytest.raises(FloatingPointError, match=r"^rebrac, update 20: expected finite metrics, got critic_loss"):
        train(SMALL, tmp_path / "run", stages=["rebrac"], data=data, quiet=True)


LONG = replace(SMALL, **{part: replace(getattr(SMALL, part), updates=600) for part in ("rebrac", "dynamics", "reward")})
ENDLESS = replace(SMALL, rebrac=replace(SMALL.rebrac, updates=10**6), checkpoint_every=10**6)


def train_and_print(config: TrainConfig, folder: str, **options) -> None:
    """Train, printing a word per metrics line."""
    train(config, folder, data=linear_system(), quiet=True, on_log=lambda line: print("line", flush=True), **options)


def restore_sigint() -> None:
    """Restore the default SIGINT handler: children of a background test run inherit that the signal is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_process(call: str, folder: Path) -> subprocess.Popen:
    code = f"import sys; from tests.training.test_run import *; train_and_print({call})"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=env, text=True, preexec_fn=restore_sigint, **pipes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    return train(LONG, tmp_path_factory.mktemp("runs") / "long", data=linear_system(), quiet=True)


@pytest.mark.parametrize(("parallel_stages", "lines"), [(1, 37), (2, 14)])
def test_a_killed_run_resumes_bit_identically(uninterrupted, tmp_path, parallel_stages, lines):
    """Send SIGKILL shortly after a metrics line, at a random point between two checkpoints; then resume, and compare."""
    folder = tmp_path / "run"
    with start_process(f"LONG, sys.argv[1], parallel_stages={parallel_stages}", folder) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline() == "line\n"
        time.sleep(random.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "reward.safetensors").exists()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rew')  # as left by a kill in the middle of a write
    rest = []
    train(LONG, folder, data=linear_system(), parallel_stages=parallel_stages, quiet=True, on_log=rest.append)
    assert 0 < len(rest) < 90
    assert same_bits(weights(folder), weights(uninterrupted))
    assert metrics(folder) == metrics(uninterrupted)


def test_a_keyboard_interrupt_keeps_every_update(tmp_path):
    with start_process("ENDLESS, sys.argv[1], stages=['rebrac']", tmp_path / "run") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line\n"
        with pytest.raises(ValueError, match="expected a run that is not being trained"):
            train(ENDLESS, tmp_path / "run", data=linear_system(), quiet=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors
    with safe_open(tmp_path / "run" / "checkpoints" / "rebrac.safetensors", "pt") as file:
        assert 20 <= int(file.metadata()["update"]) < 10**6
