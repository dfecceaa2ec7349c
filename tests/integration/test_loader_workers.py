"""Worker processes that die, and workers whose training process dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.errors import StorageError
from dfer.interruption import SIGNALS
from dfer.store.shards import Store
from tests import warm
from tests.processes import alive, children
from tests.unit.data.shardkit import Clip, write_shards

pytestmark = pytest.mark.integration

SCRIPT = """
import sys, time
from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.distributed import World
from dfer.emotions import label_set
from dfer.store.shards import Store

if __name__ == "__main__":
    clips = ClipSet.open(Store(sys.argv[1]), ["train"], emotions=label_set("basic7"))
    config = DataConfig(shards=sys.argv[1], frames=2, size=32, workers=2)
    loader = Loader(clips, config, world=World(), seed=1, train=True, global_batch=2, micro_batch=2)
    batches = loader.epoch(0)
    next(batches)
    print(*[worker.pid for worker in loader._batches._iterator._workers], flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", {"train": [[Clip(key=f"k{i}") for i in range(400)]]})


def test_a_killed_worker_is_reported_with_the_remedy(folder):
    clips = ClipSet.open(Store(str(folder)), ["train"], emotions=label_set("basic7"))
    config = DataConfig(shards=str(folder), frames=2, size=32, workers=1)
    loader = Loader(clips, config, world=World(), seed=1, train=True, global_batch=2, micro_batch=2)
    batches = loader.epoch(0)
    next(batches)
    os.kill(loader._batches._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(StorageError) as caught:
        list(batches)
    assert str(caught.value).startswith("data worker: expected it to run until the end of training, got ")
    assert "enlarge /dev/shm, or lower data.workers or micro_batch" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_worker_that_hangs_does_not_hold_up_the_exit(folder, tmp_path):
    """Nor does it where the loader is gone by then, as after training."""
    script = tmp_path / "script.py"
    hang = "torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2; del loader, batches"
    script.write_text("import torch\n" + SCRIPT.replace("time.sleep(600)", f"input(); {hang}"))
    process = warm.Popen(
        [sys.executable, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    process.communicate("\n", timeout=60)
    assert process.returncode == 0 and len(workers) == 2 and not any(alive(pid) for pid in workers)


def test_workers_do_not_hear_the_signals_that_announce_an_end(folder, tmp_path):
    """SLURM may send them to every process of a job. The processes end when the training process does."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("time.sleep(600)", "input(); print(len(list(batches)), flush=True)"))
    process = warm.Popen(
        [sys.executable, str(script), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    helpers = [pid for pid in _descendants(process.pid) if pid != process.pid]
    assert len(workers) == 2 and {*workers} < {*helpers}, "and the fork server"
    for pid in helpers:
        for number in SIGNALS:
            os.kill(pid, number)
    process.stdin.write("\n")
    process.stdin.flush()
    rest = process.stdout.readline()
    process.stdin.close()
    process.stdout.close()
    assert rest.strip() == "199" and process.wait(timeout=60) == 0
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in helpers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in helpers)


def test_workers_end_when_the_training_process_is_killed(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = warm.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in workers)


def _descendants(pid: int) -> list[int]:
    """A process and all that came from it."""
    return [pid, *(found for child in children(pid) for found in _descendants(child))]
