"""Evaluation over real gloo ranks: the same exact result at any number of them, and faults agreed by all."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
NUM_CLIPS, CLASSES, ROWS = 101, 7, 8

RANK = """
import json, sys
import torch
from dfer.distributed import from_environment, process_group
from dfer.errors import DferError
from dfer.evaluation.evaluator import evaluate
from dfer.recognition import PADDING, ClipBatch, Recognition

NUM_CLIPS, CLASSES, ROWS = 101, 7, 8
out, fault = sys.argv[1:]
world = from_environment()
share = -(-NUM_CLIPS // world.size)
mine = list(range(world.rank * share, min(NUM_CLIPS, (world.rank + 1) * share)))
if fault == "missing" and world.rank == world.size - 1:
    mine = mine[:-1]
if fault == "doubled" and world.rank == world.size - 1:
    mine = [*mine[:-1], 0]
mine += [PADDING] * (-(-share // ROWS) * ROWS - len(mine))
answers = torch.randn(NUM_CLIPS, CLASSES, generator=torch.Generator().manual_seed(5))
truth = torch.randint(0, CLASSES, (NUM_CLIPS,), generator=torch.Generator().manual_seed(6))
if fault == "nan" and world.rank == world.size - 1:
    answers[mine[0], 3] = float("nan")


def batches():
    for at in range(0, len(mine), ROWS):
        index = torch.tensor(mine[at : at + ROWS])
        labels = torch.where(index == PADDING, -1, truth[index])
        if fault == "label" and world.rank == world.size - 1 and at == 0:
            labels[2] = CLASSES
        yield ClipBatch(frames=torch.zeros(ROWS, 1, 3, 1, 1, dtype=torch.uint8), labels=labels, index=index)


with process_group(world, timeout_s=60):
    try:
        found = evaluate(lambda clips: Recognition(logits=answers[clips.index]), batches(), num_classes=CLASSES,
                         expected=NUM_CLIPS, device=torch.device("cpu"), predictions=True)
        told = {"confusion": found.scores.confusion, "war": found.scores.war, "uar": found.scores.uar,
                "labels": found.predictions.labels.tolist(), "logits": found.predictions.logits.tolist()}
    except DferError as error:
        told = {"error": type(error).__name__, "text": str(error)}
with open(f"{out}/{world.rank}.json", "w") as file:
    json.dump(told, file)
"""


def run(folder, *, size, fault="none"):
    """What every rank told, in rank order."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
    }
    ranks = [
        warm.Popen([sys.executable, "-c", RANK, str(folder), fault], env={**shared, "RANK": str(rank)})
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "1", size=1)[0]


@pytest.mark.parametrize("size", [2, 3])
def test_scores_counts_and_predictions_are_identical_at_any_number_of_ranks(tmp_path, alone, size):
    told = run(tmp_path / "ranks", size=size)
    assert sum(map(sum, alone["confusion"])) == NUM_CLIPS
    assert told == [alone] * size


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("missing", "DataError", "expected 101 clips, each once, got 100 clips: 1 missing (100)"),
        ("doubled", "DataError", "got 101 clips: 1 missing (100), 1 repeated (0)"),
        ("label", "DataError", "expected index 0..100 and label 0..6, got index 53 with label 7"),
        ("nan", "NonFiniteLossError", "got 1 of 101 clips with NaN or infinity (51)"),
    ],
)
def test_a_fault_on_one_rank_stops_both_with_the_same_words(tmp_path, fault, error, text):
    told = run(tmp_path / "ranks", size=2, fault=fault)
    assert told[0] == told[1]
    assert told[0]["error"] == error
    assert text in told[0]["text"]
