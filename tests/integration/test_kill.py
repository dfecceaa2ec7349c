"""Runs that are killed, stopped, overtaken or run out of disk end as if nothing had happened, bit for bit."""

import hashlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.integration.commands import last_weights, records, result
from tests.integration.disks import resize, small_disk
from tests.integration.jobs import Job, clips, steps_done, wait_until

__all__ = ["small_disk"]
pytestmark = pytest.mark.integration

EPOCHS, STEPS = 14, 42
KILLS = {8: 490, 20: 3}
"""By number of kills, the seed of their moments and targets; eight in `make test`: every kind of moment and target."""
# DDP: the same arithmetic as ZeRO 0, and two seconds less at every start.
CALM = (f"epochs={EPOCHS}", "eval_every=7", "engine.name=ddp", "checkpoint.keep_last=2", "record_clips=true")


def assert_same(run: Path, undisturbed: Path) -> None:
    """Weights bit for bit, every step's clips, losses, evaluations, result."""
    ours, theirs = last_weights(run), last_weights(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert clips(run) == clips(undisturbed) and [step for step, _ in clips(run)] == list(range(1, STEPS + 1))
    for kind, fields in (("train", ("step", "loss", "grad_norm", "lr")), ("eval", ("step", "epoch", "war", "uar"))):
        both = [
            [[record[field] for field in fields] for record in records(which, kind)] for which in (run, undisturbed)
        ]
        assert both[0] == both[1]
    assert result(run) == result(undisturbed)
    assert not [path for path in run.glob("**/.*.tmp") if path.parent.name != "lease"]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Launcher and ranks are new programs, each with hashes of its own, whatever the others are forked from."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with warm.cold():
        job = Job(tiny, f"run={run}", *CALM)
    code, told = job.end()
    assert code == 0, told
    return run


# SIGKILL


def moment(draw: random.Random, run: Path) -> Callable[[], bool]:
    """Holds from a random moment on: while starting, after a step of this start, or while a checkpoint is written."""
    kind = draw.choice(["starting", "step", "step", "saving", "saving"])
    if kind == "starting":
        until = time.monotonic() + draw.uniform(0.05, 6 if warm.is_cold() else 1)
        return lambda: time.monotonic() > until
    if kind == "step":
        until_step = steps_done(run) + draw.randint(1, 3)
        return lambda: steps_done(run) >= until_step
    known = {path.name for path in run.glob("checkpoints/*")} | {""}
    names = draw.choice([".weights*.tmp", "weights.safetensors", ".optimizer*.tmp", ".state*.tmp", "manifest.json"])
    # A test that gets little of the processor may miss files that are there for milliseconds.
    at_the_latest = steps_done(run) + 4

    def saving() -> bool:
        if steps_done(run) >= at_the_latest:
            return True
        try:
            return any(path.parent.name not in known for path in run.glob(f"checkpoints/*/{names}"))
        except FileNotFoundError:  # an old checkpoint that has just been removed
            return False

    return saving


@pytest.mark.slow("kills, each followed by a start; 200 s where every process is a new program")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "wanted", [pytest.param(8, id="8_kills"), pytest.param(20, id="20_kills", marks=pytest.mark.long)]
)
def test_a_run_killed_at_random_moments_ends_the_same(
    tiny: Path, tmp_path: Path, undisturbed: Path, wanted: int
) -> None:
    run, draw, kills = tmp_path / "run", random.Random(KILLS[wanted]), 0
    starts = 0
    while kills < wanted:
        starts += 1
        assert starts < 3 * wanted
        job = Job(tiny, f"run={run}", *CALM)
        if not wait_until(job, moment(draw, run)):
            code, told = job.end()
            assert code == 0, told
            pytest.fail(f"the run ended after {kills} of {wanted} kills; give it more steps")
        time.sleep(draw.uniform(0, 0.02))
        if job.alive:
            job.kill(draw.choice(["launcher", "first", "second", "all", "all"]))
            kills += 1
    code, told = Job(tiny, f"run={run}", *CALM).end()
    assert code == 0, told
    assert_same(run, undisturbed)
    assert len(list((run / "lease").glob("*.json"))) > wanted // 2, "most kills came after the run had begun"


OPTIONS = (
    *CALM,
    "eval_every=1",
    "micro_batch=2",
    "data.balance=0.5",
    "data.mix={label_smoothing: 0.1, mixup: 0.4, fmix: 0.4}",
    "engine.clip_norm=null",
    "engine.clip_value=0.01",
    "schedule={name: timm_cosine, warmup_epochs: 1, end: 1.0e-4, micro_batches: 2}",
    "ema=0.9",
    "select=best_on_test",
    "early_stop.patience=14",
)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_run_with_all_options_ends_the_same(tiny: Path, tmp_path: Path) -> None:
    """`unit/jobs/test_options.py` has each of them alone, stopped in one process."""
    straight, run = tmp_path / "straight", tmp_path / "run"
    code, told = Job(tiny, f"run={straight}", *OPTIONS).end()
    assert code == 0, told
    for at in (4, 18, 31):
        job = Job(tiny, f"run={run}", *OPTIONS)
        assert wait_until(job, lambda at=at: steps_done(run) >= at)  # type: ignore[misc]
        job.kill("all")
    code, told = Job(tiny, f"run={run}", *OPTIONS).end()
    assert code == 0, told
    assert_same(run, straight)


# SIGTERM


@pytest.mark.timeout(600)
def test_a_run_that_is_asked_to_stop_saves_and_ends_the_same(tiny: Path, tmp_path: Path, undisturbed: Path) -> None:
    """With a checkpoint an epoch only: what was done since is in the one that the stop writes."""
    run, rare = tmp_path / "run", ("checkpoint.every_steps=null",)
    for number, at in ((signal.SIGTERM, 4), (signal.SIGUSR1, 11), (signal.SIGUSR2, 20)):
        job = Job(tiny, f"run={run}", *CALM, *rare)
        assert wait_until(job, lambda at=at: steps_done(run) >= at)  # type: ignore[misc]
        job.send(number)
        code, told = job.end()
        last = told.splitlines()[-1]
        done = steps_done(run)
        assert code == 9, told
        assert last == f"error: step {done} of {STEPS}: expected to go on, got {number.name}. " + (
            "All is saved; the same command continues."
        )
        assert max(path.name for path in run.glob("checkpoints/*"))[:13] == f"step_{done:08d}"
    code, told = Job(tiny, f"run={run}", *CALM, *rare).end()
    assert code == 0 and f"step {done + 1}/{STEPS}" in told and f"step {done}/{STEPS}" not in told
    assert_same(run, undisturbed)


# A full disk


@pytest.mark.timeout(600)
def test_a_run_whose_disk_was_full_ends_the_same(tiny: Path, small_disk: Path, undisturbed: Path) -> None:
    run = small_disk / "run"
    one = sum(path.stat().st_size for path in next(undisturbed.glob("checkpoints/*")).iterdir())
    resize(small_disk, one * 7 // 2)
    arguments = (tiny, f"run={run}", *CALM, "checkpoint.keep_last=3")
    code, told = Job(*arguments).end()
    assert code == 6, told
    assert "got no space left. Free some." in told.splitlines()[-1]
    assert not (run / "results").exists() and 1 <= len(list(run.glob("checkpoints/*/manifest.json"))) <= 3
    resize(small_disk, one * 8)
    code, told = Job(*arguments).end()
    assert code == 0, told
    assert "step 1/" not in told
    assert_same(run, undisturbed)


# Two copies


def contents(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("**/*"))
        if path.is_file() and "tensorboard" not in str(path)
    }


@pytest.mark.timeout(600)
def test_a_copy_that_wakes_up_writes_nothing_and_says_so(tiny: Path, tmp_path: Path, undisturbed: Path) -> None:
    """It is stopped in the middle, taken for dead, and goes on when its successor has finished."""
    run = tmp_path / "run"
    first = Job(tiny, f"run={run}", *CALM)
    assert wait_until(first, lambda: steps_done(run) >= 7)
    first.send(signal.SIGSTOP, ranks=True)
    code, told = Job(tiny, f"run={run}", *CALM).end()
    assert code == 0, told
    before = contents(run)
    first.send(signal.SIGCONT, ranks=True)
    code, told = first.end()
    assert code == 8, told
    assert f"{run}: expected to be its only writer (lease g1-" in told and "got a newer copy at work there" in told
    assert contents(run) == before
    assert_same(run, undisturbed)


@pytest.mark.timeout(600)
def test_a_second_copy_takes_over_from_one_that_lives(tiny: Path, tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    first = Job(tiny, f"run={run}", *CALM, "epochs=14")
    assert wait_until(first, lambda: steps_done(run) >= 2)
    second = Job(tiny, f"run={run}", *CALM)
    codes = sorted((first.end()[0], second.end()[0]))
    assert codes in ([0, 8], [0, 0]), codes
    assert_same(run, undisturbed)
