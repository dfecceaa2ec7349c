"""What a scheduler costs, measured on the beds: `make bench-cluster`, as root, on a machine that does nothing else.

From submission to the first optimizer step on two hosts (SLURM, Ray), from the signal of a preemption to the saved
checkpoint, and four folds on four one-core hosts beside four processes without any scheduler. Models and data are
those of `configs/demo.yaml`, shards and run folders lie in a bucket. Times are those the run itself recorded.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from dfer.config_files import load
from dfer.jobs.config import RunConfig
from tests.cluster.commands import wait_until
from tests.cluster.hosts import Network
from tests.cluster.launched import ROOT, Run, in_bucket
from tests.cluster.ray_bed import RayBed
from tests.cluster.slurm import SlurmBed
from tests.integration import commands
from tests.integration.commands import records
from tests.servers import S3, rclone

DEMO, CPU = ROOT / "configs" / "demo.yaml", ROOT / "configs" / "clusters" / "slurm_cpu.yaml"
CLIPS = 490
# Long enough not to end while it is measured; every step recorded, nothing evaluated in between.
ENDLESS = ("epochs=1000", "eval_every=null", "log_every=1", "data.workers=0", "checkpoint.every_epochs=100")
TWO_HOSTS = ("--cluster", CPU, "cluster.nodes=2", "cluster.processes_per_node=1", "cluster.cpus_per_process=1")
WINDOW_S = 40.0


class Bench:
    """A store with shards of the demo's kind, and runs in it."""

    def __init__(self, s3: S3, folder: Path, repeats: int) -> None:
        self.s3, self.folder, self.repeats, self._number = s3, folder, repeats, 0

    def run(self, bed: SlurmBed | RayBed, *words: str) -> Run:
        self._number += 1
        return in_bucket(self.s3, self.folder / f"run{self._number}", bed.env(), *words)

    def slurm_run(self, bed: SlurmBed) -> Run:
        return self.run(bed, f"cluster.folder={self.folder / 'scripts'}")

    @property
    def shards(self) -> str:
        return f"data.shards={self.s3.url}/shards"

    def several(self, what: str, measure: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
        """One unmeasured time, which warms the caches, then so many."""
        measure()
        taken: dict[str, list[float]] = {}
        for _ in range(self.repeats):
            for name, value in measure().items():
                taken.setdefault(name, []).append(round(value, 2))
        for name, values in taken.items():
            print(f"{what}: {name}: median {statistics.median(values):.2f}, of {values}", flush=True)
        return taken


def first_step(run: Run, since: float) -> float:
    """Seconds until the first recorded step."""
    run.wait_steps(1)
    return float(records(run.files / "fold_1", "train")[0]["time"]) - since


# --- submission to first step


def slurm_start(bench: Bench, bed: SlurmBed) -> dict[str, float]:
    bed.reset()
    run, since = bench.slurm_run(bed), time.time()
    run.launch("slurm", DEMO, *TWO_HOSTS, "--only", "fold_1", *ENDLESS, bench.shards)
    submitted = time.time() - since
    seconds = first_step(run, since)
    run.ask("cancel")
    wait_until(lambda: not bed.squeue(), 60, "the queue to be empty")
    return {"submission returns, s": submitted, "first step, s": seconds}


def ray_start(bench: Bench, bed: RayBed) -> dict[str, float]:
    bed.reset()
    run, since = bench.run(bed), time.time()
    name = f"bench-{run.files.name}"
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment = {"env_vars": variables, "excludes": [".venv", ".git", "demo"]}
    words = ["cluster.gpu=false", "cluster.workers=2", "cluster.cpus_per_worker=2", "--only", "fold_1", *ENDLESS]
    bed.ray(
        "job",
        "submit",
        "--no-wait",
        f"--submission-id={name}",
        f"--working-dir={ROOT}",
        f"--runtime-env-json={json.dumps(environment)}",
        "--",
        sys.executable,
        "-m",
        "launch",
        "ray",
        str(DEMO),
        f"run={run.url}",
        bench.shards,
        *words,
        timeout=120,
    )
    submitted = time.time() - since
    seconds = first_step(run, since)
    bed.ray("job", "stop", name)
    return {"submission returns, s": submitted, "first step, s": seconds}


# --- preemption


def preemption(bench: Bench, bed: SlurmBed) -> dict[str, float]:
    """From the signal, and from the submission of the job that wants the hosts, to the checkpoint's manifest."""
    bed.reset()
    run = bench.slurm_run(bed)
    run.launch("slurm", DEMO, *TWO_HOSTS, "--only", "fold_1", *ENDLESS, bench.shards, "cluster.partition=low")
    run.wait_steps(40)
    job = run.job()
    hosts = bed.scontrol("show", "hostnames", bed.job(job)["NodeList"]).split()
    rows = records(run.files / "fold_1", "train")
    step = statistics.median(b["time"] - a["time"] for a, b in pairwise(rows))
    since = time.time()
    bed.preempt(hosts, 3)
    wanted = saved(run, beyond=0) - since
    # It comes back; now the bare signal, as SLURM sends it.
    wait_until(lambda: len(run.starts()) == 2 and run.starts()[1]["step"] is not None, 90, "the second start")
    last = run.starts()[1]["step"]
    wait_until(lambda: run.steps() > last + 5, 90, "its steps")
    since = time.time()
    bed.command(["scancel", "--signal=USR2", job])
    told = saved(run, beyond=last) - since
    run.ask("cancel")
    wait_until(lambda: not bed.squeue(), 60, "the queue to be empty")
    return {"a step, s": step, "preempting job submitted to checkpoint, s": wanted, "signal to checkpoint, s": told}


def saved(run: Run, *, beyond: int) -> float:
    """When a checkpoint of a later step was committed."""
    found: list[float] = []

    def look() -> bool:
        for manifest in run.files.glob("fold_1/checkpoints/step_*/manifest.json"):
            if int(manifest.parent.name[5:13]) > beyond:
                found.append(manifest.stat().st_mtime)
        return bool(found)

    wait_until(look, 90, f"a checkpoint after step {beyond}")
    return found[0]


# --- folds beside each other


def parallel_folds(bench: Bench, bed: SlurmBed) -> dict[str, float]:
    """Clips a second of four folds together, under SLURM on four hosts of one core, and as four processes."""
    bed.reset()
    run = bench.slurm_run(bed)
    one = ("cluster.processes_per_node=1", "cluster.cpus_per_process=1")
    run.launch("slurm", DEMO, "--cluster", CPU, "--only", "fold_1,fold_2,fold_3,fold_4", *one, *ENDLESS, bench.shards)
    under_slurm = together(run)
    run.ask("cancel")
    wait_until(lambda: not bed.squeue(), 60, "the queue to be empty")
    bare = bench.run(bed)
    with processes(bare, bench.shards):
        without = together(bare)
    return {"clips/s under SLURM": under_slurm, "clips/s bare": without, "ratio": under_slurm / without}


def together(run: Run) -> float:
    """While all four are at work."""
    for fold in range(1, 5):
        wait_until(lambda fold=fold: run.steps(fold) >= 1, 120, f"fold {fold}")
    begin = time.time() + 5
    # What is recorded arrives in the bucket up to 15 s later.
    time.sleep(5 + WINDOW_S + 20)
    rows = [row for fold in range(1, 5) for row in records(run.files / f"fold_{fold}", "train")]
    steps = sum(begin <= row["time"] < begin + WINDOW_S for row in rows)
    return steps * load([DEMO], RunConfig).batch / WINDOW_S


@contextmanager
def processes(run: Run, shards: str) -> Iterator[None]:
    env = commands.environment(**{**run.env, "DFER_CACHE": str(run.files.parent / "cache")})
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dfer",
                "train",
                str(DEMO),
                f"fold={fold}",
                f"run={run.url}/fold_{fold}",
                *ENDLESS,
                shards,
            ],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fold in range(1, 5)
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=60)


MEASURES: dict[str, tuple[Callable[[Network, S3], SlurmBed | RayBed], Callable[[Bench, Any], dict[str, float]]]] = {
    "slurm": (lambda network, _: SlurmBed(network), slurm_start),
    "ray": (lambda network, s3: RayBed(network, environment=s3.environment), ray_start),
    "preemption": (lambda network, _: SlurmBed(network), preemption),
    "folds": (lambda network, _: SlurmBed(network, cpus=1), parallel_folds),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.bench", description=__doc__)
    parser.add_argument("what", nargs="*", default=[*MEASURES], help=f"some of {', '.join(MEASURES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="all numbers, as JSON")
    args = parser.parse_args(argv)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    found: dict[str, Any] = {"cores": os.cpu_count(), "load before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands.make_shards(folder, "dfew", clips=CLIPS)
        for what in args.what:
            make, measure = MEASURES[what]
            with Network() as network, rclone(folder / what, address=network.gateway) as s3, make(network, s3) as bed:
                shutil.copytree(folder / "shards", s3.files / "shards")
                bench = Bench(s3, folder / what, args.repeats)
                found[what] = bench.several(what, partial(measure, bench, bed))
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
