"""Several seeds as one batched model: results, metrics, checkpoints and interruptions as when trained alone."""

import json
import threading
from dataclasses import replace

import pytest
import torch

from jacrec.training.batched import CHUNK, BatchedStages, run_batched
from jacrec.training.config import DynamicsConfig, ReBRACConfig, RewardConfig
from jacrec.training.flat import FlatParameterRows
from jacrec.training.loop import Metrics, load_checkpoint, run_stage
from jacrec.training.progress import make_progress
from jacrec.training.stages.dynamics import DynamicsStage
from jacrec.training.stages.rebrac import ReBRACStage
from jacrec.training.stages.reward import RewardStage
from jacrec.training.stages.supervised import concat_tables
from jacrec.training.streams import BLOCK, BlockPrefetcher
from tests.training_data import linear_system

SEEDS = (3, 10, 11)
UPDATES = 2 * CHUNK + 5


def rebrac(seed, dtype=torch.float64, **changes):
    config = ReBRACConfig(**{"hidden": (24, 16), "batch_size": 33, "updates": UPDATES, "actor_bc_coef": 0.4, **changes})
    return ReBRACStage(linear_system(), config, seed, dtype=dtype, fused=False)


def dynamics(seed, dtype=torch.float64, **changes):
    config = DynamicsConfig(**{"hidden": (24, 24), "batch_size": 31, "updates": UPDATES, "ema": 0.9, "steps": 4, **changes})
    kept, held_out = linear_system().split(0.2, seed)  # different rows and scales for every seed
    return DynamicsStage(kept, held_out, config, seed, dtype=dtype)


def reward(seed, dtype=torch.float64, **changes):
    config = RewardConfig(**{"hidden": (24, 16), "batch_size": 31, "updates": UPDATES, **changes})
    kept, held_out = linear_system().split(0.2, seed)
    return RewardStage(kept, held_out, config, seed, dtype=dtype)


STAGES = {
    "rebrac": rebrac,
    "rebrac, other norms": lambda seed, **k: rebrac(seed, actor_layer_norm=True, critic_layer_norm=False, **k),
    "rebrac, other policy_freq": lambda seed, **k: rebrac(seed, policy_freq=3, normalize_q=False, **k),
    "diffusion": dynamics,
    "diffusion, norms": lambda seed, **k: dynamics(
        seed, layer_norm=True, residual=True, activation="mish", prediction="epsilon", **k
    ),
    "deterministic": lambda seed, **k: dynamics(seed, kind="deterministic", ema=0.0, max_grad_norm=None, **k),
    "flow": lambda seed, **k: dynamics(seed, kind="flow", prediction="velocity", **k),
    "meanflow": lambda seed, **k: dynamics(seed, kind="meanflow", layer_norm=True, activation="silu", **k),
    "reward": lambda seed, **k: reward(seed, max_grad_norm=0.05, ema=0.8, lr_schedule="cosine", **k),
}
each_kind = pytest.mark.parametrize("kind", STAGES)


def alone(make, seed, updates=UPDATES):
    stage = make(seed)
    for update in range(updates):
        stage.step(update)
    return stage


def same(stage, other, rtol=1e-11, atol=1e-12):
    for name, value in other.state().items():
        torch.testing.assert_close(stage.state()[name], value, rtol=rtol, atol=atol)


@each_kind
@pytest.mark.parametrize("graphs", [False, True])
def test_each_seed_equals_training_it_alone(kind, graphs):
    """`graphs=True` runs what a CUDA graph would contain: several updates at once, on inputs with fixed addresses."""
    members = [STAGES[kind](seed) for seed in SEEDS]
    group, update = BatchedStages(members, graphs), 0
    while update < UPDATES:
        update += group.advance(update, UPDATES - update)
    assert update == UPDATES
    for seed, member in zip(SEEDS, members, strict=True):
        expected = alone(STAGES[kind], seed)
        same(member, expected)
        assert member.evaluate() == pytest.approx(expected.evaluate(), rel=1e-9)
        for name, module in expected.modules().items():
            for key, value in module.state_dict().items():
                torch.testing.assert_close(member.modules()[name].state_dict()[key], value, rtol=1e-11, atol=1e-12)
    assert not torch.equal(*(next(iter(m.state().values())) for m in members[:2]))


def test_chunks_of_updates_stop_at_boundaries():
    group = BatchedStages([rebrac(0), rebrac(1)], graphs=True)
    assert [group.advance(0, 100), group.advance(CHUNK, CHUNK - 1), group.advance(CHUNK + 1, 100)] == [CHUNK, 1, 1]
    assert BatchedStages([rebrac(0)], graphs=False).advance(0, 100) == 1


def train_alone(stage, checkpoint, metrics):
    """Run the loop of a single stage with the same `log_every` and `checkpoint_every` as `run`."""
    with make_progress(quiet=True) as progress:
        run_stage(stage, checkpoint, metrics, log_every=7, checkpoint_every=6, progress=progress)


def run(members, folder, **options):
    """Run `run_batched` with a checkpoint and a metrics file per stage; return whether it finished."""
    folder.mkdir(exist_ok=True)
    with make_progress(quiet=True) as progress:
        return run_batched(
            members,
            [folder / f"{i}.safetensors" for i in range(len(members))],
            [Metrics(folder / f"{i}.jsonl") for i in range(len(members))],
            **{"log_every": 7, "checkpoint_every": 6, "progress": progress, **options},
        )


def lines(folder, i):
    """A stage's metrics lines without the time."""
    found = [json.loads(text) for text in (folder / f"{i}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("stage", "seconds")} for line in found]


@pytest.mark.parametrize("kind", ["rebrac", "diffusion"])
def test_metrics_and_checkpoints_equal_those_of_training_alone(kind, tmp_path):
    members = [STAGES[kind](seed) for seed in SEEDS]
    assert run(members, tmp_path / "group", graphs=True)
    for i, seed in enumerate(SEEDS):
        stage = STAGES[kind](seed)
        train_alone(stage, tmp_path / "alone", Metrics(tmp_path / f"{i}.jsonl"))
        assert len(lines(tmp_path, i)) == 3
        for actual, expected in zip(lines(tmp_path / "group", i), lines(tmp_path, i), strict=True):
            assert actual == pytest.approx(expected, rel=1e-9)
        resumed = STAGES[kind](seed)
        assert load_checkpoint(resumed, tmp_path / "group" / f"{i}.safetensors").update == UPDATES
        same(resumed, stage)
        (tmp_path / "alone").unlink()


@each_kind
def test_an_interrupted_group_resumes_bit_identically(kind, tmp_path):
    make = STAGES[kind]
    uninterrupted = [make(seed) for seed in SEEDS]
    assert run(uninterrupted, tmp_path / "uninterrupted")
    stop = threading.Event()
    first = [make(seed) for seed in SEEDS]
    evaluate = first[0].evaluate

    def interrupted():
        stop.set()
        return evaluate()

    first[0].evaluate = interrupted
    assert not run(first, tmp_path / "group", stop=stop)
    second = [make(seed) for seed in SEEDS]
    assert run(second, tmp_path / "group")
    for member, expected in zip(second, uninterrupted, strict=True):
        assert all(torch.equal(member.state()[name], value) for name, value in expected.state().items())
    for i in range(len(SEEDS)):
        assert lines(tmp_path / "group", i) == lines(tmp_path / "uninterrupted", i)


def test_stages_behind_are_trained_first(tmp_path):
    folder = tmp_path / "group"
    folder.mkdir()
    for i, updates in ((0, 12), (2, 5)):  # two seeds were trained alone for a while; the other has not started
        stage = rebrac(SEEDS[i], updates=updates)
        train_alone(stage, folder / f"{i}.safetensors", Metrics(folder / f"{i}.jsonl"))
    members = [rebrac(seed) for seed in SEEDS]
    assert run(members, folder)
    for seed, member in zip(SEEDS, members, strict=True):
        same(member, alone(rebrac, seed))
    assert [line["update"] for line in lines(folder, 1)] == [7, 14, 21]


def test_single_precision_differs_from_training_alone_by_rounding():
    """Batched products sum in a different order; after a few updates the difference is that of rounding."""
    members = [rebrac(seed, dtype=torch.float32) for seed in SEEDS]
    group = BatchedStages(members)
    for update in range(3):
        group.advance(update, 1)
        for seed, member in zip(SEEDS, members, strict=True):
            one = rebrac(seed, dtype=torch.float32)
            for t in range(update + 1):
                one.step(t)
            moment, expected = (s.state()["critic.exp_avg"] for s in (member, one))
            assert torch.linalg.vector_norm(moment - expected) < 1e-5 * torch.linalg.vector_norm(expected)


def test_different_architectures_are_rejected():
    with pytest.raises(ValueError, match=r"^flats: expected modules of the same architecture"):
        BatchedStages([rebrac(0), rebrac(1, hidden=(8, 8))])
    assert FlatParameterRows([rebrac(0).learner.flat_actor]).value.shape[0] == 1


def test_fused_learners_are_rejected():
    pytest.importorskip("numba")
    stages = [ReBRACStage(linear_system(), replace(rebrac(0).config), seed, fused=True) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"^fused: expected False"):
        BatchedStages(stages)


def test_a_shared_table_is_not_copied():
    first = rebrac(0)
    rest = [
        ReBRACStage(linear_system(), first.config, seed, dtype=torch.float64, fused=False, rows=first.rows) for seed in (1, 2)
    ]
    assert BatchedStages([first, *rest]).batched_step.rows is first.rows
    pool, start = concat_tables([torch.zeros(4, 2), torch.ones(3, 2), torch.ones(5, 2)])
    assert pool.shape == (12, 2)
    assert start.tolist() == [[0], [4], [7]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (5, 2, 3, 0, 0)])
def test_prefetched_blocks_are_the_same(order):
    def draw(block):
        return (torch.full((BLOCK,), block),)

    blocks = BlockPrefetcher(draw, ahead=True)
    assert [int(blocks(block)[0][0]) for block in order] == list(order)
    assert blocks.pending is not None
    assert blocks.pending[0] == order[-1] + 1
