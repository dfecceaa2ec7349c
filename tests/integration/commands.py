"""`dfer` and `dfer-shards` as a user starts them: processes of their own, one thread each."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from dfer import __main__ as cli
from tests import warm

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
Capture = pytest.CaptureFixture[str]

# Small enough for a step of some milliseconds: 28 training clips of generated faces, 3 steps an epoch.
TINY = """
run: run
epochs: 3
batch: 8
eval_batch: 4
eval_every: 1
data:
  shards: shards
  frames: 4
  size: 64
  workers: 0
  augment: {crop: true, min_area: 0.5, flip: 0.5, brightness: 0.2}
model:
  name: dfer_clip
  towers: {arch: tiny-conv-64}
  num_contexts: 2
  temperature: 0.1
  temporal: {depth: 1, heads: 2, head_dim: 16, mlp_dim: 64, init_std: 0.02}
optim:
  name: adamw
  groups: {image: {lr: 1.0e-3}, temporal: {lr: 1.0e-3}, prompts: {lr: 1.0e-3}}
schedule: {name: cosine, warmup_epochs: 1}
engine: {name: deepspeed, zero: 0, clip_norm: 1.0}
checkpoint: {every_epochs: null, every_steps: 1, keep_last: 1}
"""

# Plain SGD: what rounding does to a gradient stays as small in the weights.
SGD = ("optim.name=sgd", "optim.groups={image: {lr: 0.02}, temporal: {lr: 0.02}, prompts: {lr: 0.02}}")


def environment(**more: str) -> dict[str, str]:
    """One thread a process, and no rank of somebody else's."""
    own = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def command(arguments: Sequence[object], *, ranks: int, module: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", module, *map(str, arguments)]


def start(*arguments: object, ranks: int = 1, module: str = "dfer", timeout: float = 300, **variables: str) -> Done:
    """Run a command to its end, whatever the end is."""
    return warm.run(
        command(arguments, ranks=ranks, module=module),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def here(capsys: Capture, *arguments: object) -> Done:
    """`dfer` in this process: the same code and exit code, without the seconds of importing torch."""
    capsys.readouterr()
    code = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return Done([], code, out, err)


def finish(*arguments: object, ranks: int = 1, module: str = "dfer", timeout: float = 300, **variables: str) -> Done:
    """Run a command that must succeed."""
    done = start(*arguments, ranks=ranks, module=module, timeout=timeout, **variables)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def refused(done: Done, code: int, *said: str) -> str:
    """The one line a refused command prints; checks the exit code and that there is no traceback."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stdout + done.stderr, done.stderr[-4000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr[-4000:]
    for part in said:
        assert part in lines[0], lines[0]
    return lines[0]


def killed(*arguments: object, when: Callable[[], bool], timeout: float = 120) -> None:
    """Start a command and SIGKILL it as soon as `when` holds; it must not have ended by then."""
    process = warm.Popen(
        command(arguments, ranks=1, module="dfer"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + timeout
        while not when():
            assert process.poll() is None, f"ended with {process.returncode} before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_shards(folder: Path, dataset: str, *, clips: int, size: int = 64) -> Path:
    """Generated faces in raw/, their shards in shards/; returns `folder`."""
    finish("synth", dataset, folder / "raw", "--clips", clips, "--size", size, "--no-progress", module="shards")
    finish("build", dataset, folder / "raw", folder / "shards", "--jobs", 1, "--no-progress", module="shards")
    return folder


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def result(run: Path) -> dict[str, Any]:
    """results/test.json without what differs from one evaluation to the next by nature."""
    plain: dict[str, Any] = json.loads((run / "results" / "test.json").read_text())
    return {key: value for key, value in plain.items() if key not in ("finished", "seconds")}


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def last_weights(run: Path) -> dict[str, Tensor]:
    return load_file(sorted(run.glob("checkpoints/step_*"))[-1] / "weights.safetensors")


def largest_difference(a: Path, b: Path) -> float:
    """Between the weights of the last checkpoints of two runs."""
    ours, theirs = last_weights(a), last_weights(b)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
