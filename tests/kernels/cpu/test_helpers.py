"""Helper threads that lose their cores: the same bits, no waiting, and nothing freed that they may still read."""

import ctypes
import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch

from jacrec.engine.shapes import problem as check
from jacrec.kernels.cpu.base import helpers, threads
from jacrec.kernels.cpu.gradient import gradient, plans, shares
from tests.cpu_cases import FORWARD, FUSED, anchored, decide, problem_of

MS = 1_000_000


@pytest.fixture(autouse=True)
def _helpers_for_any_work(monkeypatch):
    for name in ("SPIN", "SHORT_SPIN"):  # they are awake, however short a job is
        monkeypatch.setattr(helpers, name, 50 * MS)
    monkeypatch.setattr(threads, "LEAST_WORK", 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    plans.forget()


def bits(problem, method=FUSED, **options):
    """Everything that a decision leaves, ψ included."""
    step, policy = decide(problem, method, **{"lr": 1e-2, "updates": 2, **options})
    return [step.action, step.objective, step.gradient_norm, *policy.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def until(condition, seconds=60.0):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def head_start(monkeypatch):
    """Lets the callers after each call wait for their helpers' beginning, by turns longer, on a busy machine too."""
    lengths = itertools.cycle((0, 1, 3, 10, 30, 100, 300))
    return lambda: monkeypatch.setattr(shares, "HEAD_START", next(lengths) * MS)


def idle(pool):
    return not any(helper.lock.locked() for helper in pool.helpers)


def alone(monkeypatch, compute, *arguments):
    """What a caller computes without helpers."""
    with monkeypatch.context() as patch:
        patch.setattr(helpers.Pool, "take", lambda self, count: [])
        return compute(*arguments)


PROBLEMS = [
    {"M": 40},
    {"M": 7, "layer_norm": True, "H": 3},
    {"M": 2, "H": 0},
    {"N": 3, "M": 7, "batched": True},
    {"N": 2, "M": 20, "batched": True, "layer_norm": True},
]


def own_terms(problem):
    """The problem with a reward and a critic that torch evaluates between two compiled calls."""
    policy, world, *inputs = problem
    own = replace(world, reward=lambda s, a: s.sin().sum(-1) * a.sum(-1), critic=lambda s, a: s.sum(-1) * a.cos().sum(-1))
    return policy, own, *inputs


class Record(helpers.Patience):
    """Endless patience, which records what came of every job."""

    def __init__(self):
        super().__init__()
        self.failed = []

    def record(self, failed):
        self.failed.append(failed)


@pytest.mark.parametrize("method", [FUSED, FORWARD], ids=["adjoint", "forward"])
def test_the_bits_do_not_depend_on_who_took_part(pool, monkeypatch, method):
    """Helpers that are late, are revoked, or come back in the middle of another decision."""
    rng, pool.patience = random.Random(0), Record()
    problems = [problem_of(**sizes) for sizes in PROBLEMS]
    problems += [anchored(problems[0], terminal=True), own_terms(problems[0]), own_terms(problems[3])]
    for problem in problems:
        expected = alone(monkeypatch, bits, problem, method)
        for _ in range(8):
            monkeypatch.setattr(shares, "DELAY", rng.choice([0, 0, 1, 3]) * MS)
            monkeypatch.setattr(shares, "HEAD_START", rng.choice([0, 0, 1]) * MS)
            monkeypatch.setattr(shares, "PATIENCE", rng.choice([0, 300, 10**6]))
            assert equal(bits(problem, method), expected)
        until(lambda: idle(pool))
    problem = problem_of(M=400)
    expected, delays = alone(monkeypatch, bits, problem, method), iter([0, 3 * MS] * 1000)

    def both_seen():
        monkeypatch.setattr(shares, "DELAY", next(delays))
        assert equal(bits(problem, method), expected)
        return len(set(pool.patience.failed)) == 2

    monkeypatch.setattr(helpers, "LOST", float("inf"))  # what other processes do to the caller does not count here
    monkeypatch.setattr(shares, "HEAD_START", 0)
    monkeypatch.setattr(shares, "PATIENCE", 300)
    until(both_seen)


def leave_one(pool, head_start):
    """Decide until a helper is left; the world's dynamics, as far as they are alive."""
    problem, kept = problem_of(M=40), []

    def left():
        pool.patience = helpers.Patience()
        head_start()
        decide(problem, FUSED, lr=1e-2)
        away = [(helper, helper.held) for helper in pool.helpers if helper.lock.locked()]
        kept.extend(held for helper, held in away if helper.lock.locked())
        return kept

    until(left)
    assert all(kept)
    return weakref.ref(problem[1].dynamics)


def test_a_helper_that_was_left_keeps_what_it_reads(pool, monkeypatch, head_start):
    monkeypatch.setattr(shares, "DELAY", 20 * MS)
    monkeypatch.setattr(shares, "PATIENCE", 0)
    dynamics = leave_one(pool, head_start)
    until(lambda: idle(pool))
    assert not any(helper.held for helper in pool.helpers)
    plans.forget()
    gc.collect()
    assert dynamics() is None


def particle_squares(p):
    found = gradient.particle_squares(p, [name for name, _ in p.policy.named_parameters()])
    assert found is not None
    estimate, squares = found
    return [estimate.value, *estimate.gradient.values(), squares]


DIAGNOSTICS = {
    "visits": gradient.visits,
    "squares": particle_squares,
    "jacobians": gradient.rollout_jacobians,
    "growth": lambda p: [gradient.growth(p, torch.ones_like(p.state[0]))],
}


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_no_helper_writes_to_a_result_after_the_call(pool, monkeypatch, head_start, name):
    """Where helpers write to the result itself, the caller waits for those that have begun, however late they are."""
    monkeypatch.setattr(shares, "PATIENCE", 0)
    pool.patience, work, answers = Record(), shares.work, []

    def observed(*arguments):
        found = work(*arguments)
        answers.extend(found[0])
        return found

    monkeypatch.setattr(shares, "work", observed)
    for sizes in ({"M": 40}, {"N": 3, "M": 7, "batched": True}):
        for problem in (problem_of(**sizes), own_terms(problem_of(**sizes))):
            answers.clear()
            p = check(*problem)
            expected = alone(monkeypatch, DIAGNOSTICS[name], p)

            def took_part(p=p, expected=expected):
                head_start()
                for delay in (0, 3 * MS):
                    monkeypatch.setattr(shares, "DELAY", delay)
                    found = DIAGNOSTICS[name](p)
                    assert idle(pool)
                    assert equal(found, expected)
                return helpers.LATE in answers

            until(took_part)
            assert helpers.GONE not in answers


@pytest.mark.parametrize("when", ["prepared", "before", "after"])
def test_an_interrupted_caller_leaves_helpers_usable(pool, monkeypatch, when):
    problem, pool.patience = problem_of(M=40), Record()
    expected = alone(monkeypatch, bits, problem)
    work = shares.work

    def interrupted(*arguments, **options):
        if when == "after":
            work(*arguments)
        raise KeyboardInterrupt

    for delay in (0, 5 * MS):
        with monkeypatch.context() as patch:
            patch.setattr(shares, "together" if when == "prepared" else "work", interrupted)
            patch.setattr(shares, "DELAY", delay)
            patch.setattr(shares, "PATIENCE", 0)
            with pytest.raises(KeyboardInterrupt):
                bits(problem)
        until(lambda: idle(pool))
        assert equal(bits(problem), expected)


def test_what_a_left_helper_has_written_stays_until_its_caller_has_read_it(pool, monkeypatch, head_start):
    """It has done one of ten shares and is late with a second; another caller has it before the first one adds up its shares."""
    problem = problem_of(M=400)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10)
    monkeypatch.setattr(helpers, "processors", lambda: 2)
    expected = alone(monkeypatch, bits, problem)
    begun = time.perf_counter()
    alone(monkeypatch, bits, problem)
    share, run, lost = (time.perf_counter() - begun) / 20, gradient.run_shares, []
    monkeypatch.setattr(shares, "PATIENCE", 0)

    def delayed(task, job, *arguments, then=None, **options):
        def later():
            helper = pool.helpers[0]
            memory, away = helper.memory, helper.words[helpers.STATE] == helpers.LEFT
            if away and memory is not None:
                results = (ctypes.c_int64 * job.sized.shares).from_address(int(job.row[shares.SLOT["results"]]))
                lost.append(any(0 <= x - memory.data_ptr() < memory.nbytes for x in results))
                del memory
                until(lambda: idle(pool))
                helper.space(1, torch.float64)
                helper.memory.fill_(torch.nan)  # as another caller's job would
            then()

        return run(task, job, *arguments, then=later, **options)

    monkeypatch.setattr(gradient, "run_shares", delayed)
    delays = itertools.cycle((1, 2, 3))

    def left():
        pool.patience = helpers.Patience()
        monkeypatch.setattr(shares, "DELAY", int(next(delays) * 1e9 * share))
        head_start()
        assert equal(bits(problem), expected)
        until(lambda: idle(pool))
        return sum(lost) >= 3

    until(left)


def test_four_threads_decide_at_once(pool, monkeypatch):
    monkeypatch.setattr(shares, "DELAY", MS // 2)
    pool.patience = Record()
    problems = [problem_of(M=13, seed=seed) for seed in range(4)]
    expected = [alone(monkeypatch, bits, problem) for problem in problems]
    right = [0] * 4

    def work(i):
        for _ in range(10):
            right[i] += equal(bits(problems[i], updates=2), expected[i])

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [10] * 4
    until(lambda: idle(pool))


def test_after_two_failures_callers_work_alone_for_longer_and_longer():
    patience, waits = helpers.Patience(), []
    assert patience.allows()
    patience.record(failed=True)
    for _ in range(4):
        assert patience.allows()
        patience.record(failed=True)
        waits.append(0)
        while not patience.allows():
            waits[-1] += 1
    assert waits == [8, 16, 32, 64]
    patience.record(failed=False)
    patience.record(failed=True)
    assert patience.allows()


def test_a_team_whose_other_thread_is_missing_works_alone(pool, monkeypatch):
    from jacrec import Adjoint, policy_gradient

    problem, team = problem_of(M=1), Adjoint(kernel="fused", team=2)
    expected = policy_gradient(*problem, method=FUSED).gradient

    def missing(row, others, jobs, held):
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(int(row[helpers.CALL_TASK]))(int(row[helpers.CALL_JOB]))
        return [helpers.NOT_BEGUN] * len(others), False

    monkeypatch.setattr(shares, "work", missing)
    for _ in range(4):  # asked twice, then no more
        got = policy_gradient(*problem, method=team).gradient
        assert all(torch.equal(got[name], expected[name]) for name in got)
    assert pool.patience.left


def test_a_process_whose_helper_is_away_forks_and_ends():
    script = (
        "import os, torch\n"
        "from jacrec.kernels.cpu.base import helpers, threads\n"
        "from jacrec.kernels.cpu.gradient import shares\n"
        "from tests.cpu_cases import FUSED, decide, problem_of\n"
        "torch.set_num_threads(1)\n"
        "torch.get_num_threads = lambda: 2\n"
        "helpers.processors, threads.LEAST_WORK = lambda: 2, 1.0\n"
        "problem = problem_of(M=40)\n"
        "bits = lambda: list(decide(problem, FUSED, lr=1e-2)[1].parameters())\n"
        "before = bits()\n"
        "shares.DELAY, shares.PATIENCE = 10**9, 0\n"
        "for _ in range(1000):\n"
        "    bits()\n"
        "    if any(h.lock.locked() for h in helpers.pool().helpers):\n"
        "        break\n"
        "    helpers.pool().patience = helpers.Patience()\n"
        "print('away', [h.lock.locked() for h in helpers.pool().helpers])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    shares.DELAY, shares.PATIENCE = 0, 10**6\n"
        "    after = [bits() for _ in range(3)][-1]\n"
        "    same = all(torch.equal(a, b) for a, b in zip(after, before))\n"
        "    os._exit(7 if same and len(helpers.pool().helpers) == 1 else 8)\n"
        "print('child', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert "away [True]" in done.stdout
    assert "child 7" in done.stdout
