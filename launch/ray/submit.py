"""Ray: every fold a TorchTrainer, beside each other as far as there is room, then the report.

The same command works from a driver and inside `ray job submit`. A job that is submitted twice finds finished folds and
takes over the others: the first one hears of it, has its folds save and makes room; so there is one result, once.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfer.exit import exit_now
from dfer.storage import Folder, client
from launch.cluster import RayCluster
from launch.job import LAUNCH, PROJECT, Job, conclude
from launch.ray.cluster import connected, in_ray_job
from launch.ray.driver import Driver

PACKAGES = ("dfer", "launch", "shards")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job for a Ray cluster."""

    job: Job
    cluster: RayCluster

    def dry_run(self) -> str:
        """Format what would be requested from Ray."""
        plan = {
            "folds": list(self.job.folds), "run": self.job.run, "scaling": self.scaling(),
            "max_failures": self.cluster.max_failures, "parallel_folds": self.cluster.parallel_folds,
            "runtime_env": self.runtime_env(),
        }  # fmt: skip
        return json.dumps(plan, indent=1)

    def scaling(self) -> dict[str, Any]:
        """Of ScalingConfig: a range of workers makes the fold elastic."""
        cluster = self.cluster
        workers: dict[str, Any] = {"num_workers": cluster.workers}
        if cluster.elastic:
            workers = {
                "num_workers": (cluster.min_workers, cluster.workers),
                "elastic_resize_monitor_interval_s": cluster.grow_s,
            }
        return {**workers, "use_gpu": cluster.gpu, "resources_per_worker": cluster.per_worker}

    def runtime_env(self) -> dict[str, Any]:
        """Return Ray's runtime environment: the code of this checkout, unless it is the job's working folder."""
        found: dict[str, Any] = {"env_vars": dict(self.cluster.env_vars)} if self.cluster.env_vars else {}
        if not (in_ray_job() and Path.cwd().resolve() == PROJECT):
            found["py_modules"] = [str(PROJECT / name) for name in PACKAGES]
        return found

    def run(self) -> int:
        """Run all folds that are not finished, then write and print the report; the exit code of the first that failed.

        Raises:
            UsageError: no cluster, or too small a cluster. A host that does not share the run folder tells so itself,
                and its fold fails.
        """
        home = Folder(self.job.run, what="run")
        done = self.job.finished()
        if done:
            print(f"finished already: fold {', '.join(map(str, done))}", flush=True)
        wanted, code = [fold for fold in self.job.folds if fold not in done], 0
        if wanted:
            with connected(self.cluster, self.runtime_env()) as address:
                driver = Driver(self.cluster, home, wanted, self._fit, address=address, revision=self.job.revision)
                code = driver.run()
                if driver.abandoned:  # Ray crashes at shutdown while threads wait in it
                    exit_now(code if driver.closed else conclude(self.job.run, self.job.folds, code))
            if code and driver.closed:
                return code
        return conclude(self.job.run, self.job.folds, code)

    def _fit(self, fold: int, board: Any, mark: str) -> None:
        trainer(self, fold, board, mark).fit()


def trainer(submission: Submission, fold: int, board: Any, mark: str) -> Any:
    """Ray's trainer of one fold. Its own files lie in the run folder; checkpoints are the run's, under its fence."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from launch.ray.worker import MeetingConfig, Trial, train_fold

    cluster, job = submission.cluster, submission.job
    return TorchTrainer(
        train_fold,
        train_loop_config=Trial(
            job=job, fold=fold, gpu=cluster.gpu, interface=cluster.interface, meet_s=cluster.meet_s, board=board,
            mark=mark,
        ),
        torch_config=MeetingConfig(),
        scaling_config=ScalingConfig(**submission.scaling()),
        run_config=RunConfig(
            name=f"fold_{fold}-{time.time_ns()}", failure_config=FailureConfig(max_failures=cluster.max_failures),
            **_storage(job.run),
        ),
    )  # fmt: skip


def _storage(run: str) -> dict[str, Any]:
    """Return Ray's storage options: its files go into the run folder, through the same client as all others."""
    url = f"{run}/{LAUNCH}/ray"
    if "://" not in run:
        return {"storage_path": url}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = client(url, what="run")
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}
