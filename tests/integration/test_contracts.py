"""What learners may be besides a mean over clips: contrastive negatives over all ranks, batch statistics, dropout.

A worker process per rank (tests/integration/contract_worker.py), on one and on three real gloo ranks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("contract_worker.py")
every = pytest.mark.parametrize("name", ("ddp", "zero1"))


def measured(case: str, ranks: int, folder: Path) -> dict[str, Any]:
    """What the ranks of a case measured, by engine."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, str(WORKER), case, str(folder / "out.json")],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
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
