"""What learners may be besides a mean over clips: contrastive negatives over all ranks, batch statistics, dropout;
also where a run is killed and continued.

A worker process per rank (tests/integration/contract_worker.py), on one and on three real gloo ranks.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import last_weights, records
from tests.integration.jobs import steps_done
from tests.integration.ranks import finish_ranks, start_ranks

pytestmark = pytest.mark.integration

WORKER = Path(__file__).with_name("contract_worker.py")
every = pytest.mark.parametrize("name", ("ddp", "zero1"))


def measured(case: str, ranks: int, folder: Path) -> dict[str, Any]:
    """What the ranks of a case measured, by engine."""
    finish_ranks((WORKER, case, folder / "out.json"), ranks=ranks)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


@pytest.fixture(scope="module")
def projection(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return {ranks: measured("projection", ranks, tmp_path_factory.mktemp("projection")) for ranks in (1, 3)}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks: from three on, DDP sums in another order once it has regrouped its buckets."""
    return measured("noise", 2, tmp_path_factory.mktemp("noise"))


@every
def test_a_contrastive_head_has_one_loss_curve_on_any_number_of_ranks(
    projection: dict[int, dict[str, Any]], name: str
) -> None:
    alone, spread = projection[1][name], projection[3][name]
    assert len(set(alone["losses"])) == 6
    assert spread["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert spread["weight"] == pytest.approx(alone["weight"], abs=1e-5) and len(alone["weight"]) == 8 * 16


@every
def test_clips_and_captions_have_one_loss_curve_on_any_number_of_ranks(
    projection: dict[int, dict[str, Any]], name: str
) -> None:
    alone, spread = projection[1][name]["captions"], projection[3][name]["captions"]
    assert alone[-1] < alone[0] - 0.01 and spread == pytest.approx(alone, abs=1e-4)


@every
def test_dropout_and_batch_norm_continue_bit_for_bit(noise: dict[str, Any], name: str) -> None:
    assert noise[name]["losses"][0] == noise[name]["losses"][1]
    assert noise[name]["same"]


@every
def test_ranks_and_micro_batches_share_no_mask(noise: dict[str, Any], name: str) -> None:
    made, distinct = noise[name]["masks"]
    assert made == distinct == 4 * 12 // 2


@every
def test_buffers_are_the_same_on_every_rank(noise: dict[str, Any], name: str) -> None:
    assert noise[name]["buffers"] and noise[name]["moved"]


# --- killed and continued


class Ranks:
    """The ranks of one training in RUN."""

    def __init__(self, learner: str, run: Path, ranks: int) -> None:
        self._processes = start_ranks((WORKER, f"train-{learner}", run), ranks=ranks)

    def kill_after(self, run: Path, steps: int) -> None:
        """SIGKILL to all of them once so many steps are recorded."""
        deadline = time.monotonic() + 240
        while steps_done(run) < steps:
            assert all(process.poll() is None for process in self._processes), self.end()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> list[tuple[int, str]]:
        """Exit code and error stream of every rank."""
        told = [process.communicate(timeout=240)[1] for process in self._processes]
        return [(process.returncode, text) for process, text in zip(self._processes, told)]


def finished(learner: str, run: Path, ranks: int) -> Path:
    ended = Ranks(learner, run, ranks).end()
    assert all(code == 0 for code, _ in ended), ended
    return run


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run, "train")]


def test_a_killed_run_with_dropout_ends_the_same_and_only_at_its_layout(tmp_path: Path) -> None:
    """Batch norm and dropout on two ranks, three micro-batches a step; SIGKILL twice."""
    undisturbed, run = finished("noisy", tmp_path / "undisturbed", 2), tmp_path / "run"
    Ranks("noisy", run, 2).kill_after(run, 4)
    ((code, told),) = Ranks("noisy", run, 1).end()
    assert (
        code == 5
        and (
            ": expected 2 ranks with micro-batches of 2, as it was started on, got 1 rank with micro-batches of 2. "
            "The clips of a micro-batch share statistics or partners in this run, so others compute something else. "
            "Start it on 2 ranks with micro-batches of 2, or a new run with run=FOLDER."
        )
        in told.splitlines()[-1]
    )
    Ranks("noisy", run, 2).kill_after(run, 14)
    finished("noisy", run, 2)
    ours, theirs = last_weights(run), last_weights(undisturbed)
    assert len(losses(run)) == 30 and losses(run) == losses(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_contrastive_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    alone, run = finished("projection", tmp_path / "alone", 1), tmp_path / "run"
    Ranks("projection", run, 2).kill_after(run, 10)
    finished("projection", run, 3)
    assert len(losses(run)) == 30 and losses(run) == pytest.approx(losses(alone), abs=1e-5)
    ours, theirs = last_weights(run), last_weights(alone)
    assert torch.allclose(ours["mlp.weight"], theirs["mlp.weight"], rtol=0, atol=1e-5)
