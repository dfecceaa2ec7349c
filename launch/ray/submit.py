"""Submit to Ray: every part is a TorchTrainer, or a plain task if it is one independent process; as many at a time as
fit into the cluster; then the report.

The same command works from a driver and inside `ray job submit`. A job that is submitted twice skips finished parts and
takes over the others: the older job notices it, saves, stops and frees its resources; so each part has one result.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer.exit import exit_now
from dfer.jobs.parts import Part
from dfer.storage import Folder, client
from launch.cluster import RayCluster
from launch.job import LAUNCH, PROJECT, Job, conclude
from launch.ray.cluster import connected, in_ray_job
from launch.ray.driver import Driver

if TYPE_CHECKING:
    from launch.ray.worker import Trial

PACKAGES = ("dfer", "launch", "shards")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job for a Ray cluster."""

    job: Job
    cluster: RayCluster

    def dry_run(self) -> str:
        """Format what would be requested from Ray."""
        plan = {
            "parts": [part.name for part in self.job.parts],
            "run": self.job.run,
            "scaling": self.scaling(),
            "max_failures": self.cluster.max_failures,
            "parallel_parts": self.cluster.parallel_parts,
            "runtime_env": self.runtime_env(),
        }
        return json.dumps(plan, indent=1)

    def scaling(self) -> dict[str, Any]:
        """Return the arguments of ScalingConfig; a range of workers makes the part elastic."""
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
        """Run all parts that are not finished, then write and print the report. Returns the exit code of the first part
        that failed.

        Raises:
            UsageError: no cluster, or too small a cluster. On a host that does not share the run folder, the part fails
                with a message instead.
        """
        home = Folder(self.job.run, what="run")
        done = self.job.done()
        if done:
            print(f"finished already: {', '.join(part.name for part in done)}", flush=True)
        wanted, code = [part.name for part in self.job.parts if part not in done], 0
        if wanted:
            with connected(self.cluster, self.runtime_env()) as address:
                driver = Driver(self.cluster, home, wanted, self._fit, address=address, revision=self.job.revision)
                code = driver.run()
                if driver.abandoned:  # Ray crashes at shutdown while threads wait in it
                    exit_now(code if driver.closed else conclude(self.job, code))
            if code and driver.closed:
                return code
        return conclude(self.job, code)

    def _fit(self, name: str, board: Any, mark: str) -> None:
        part = self.job.part(name)
        if self.job.module.grouped:
            trainer(self, part, board, mark).fit()
        else:
            run_alone(self, part, board, mark)

    def trial(self, part: Part, board: Any, mark: str) -> "Trial":
        """Return the arguments of a part's processes."""
        from launch.ray.worker import Trial

        cluster = self.cluster
        return Trial(
            job=self.job,
            part=part,
            gpu=cluster.gpu,
            interface=cluster.interface,
            meet_s=cluster.meet_s,
            board=board,
            mark=mark,
        )


def trainer(submission: Submission, part: Part, board: Any, mark: str) -> Any:
    """Make Ray's trainer of one part. Ray's own files are in the run folder; checkpoints are those of the run,
    protected by its fence."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from launch.ray.worker import RendezvousConfig, run_part

    return TorchTrainer(
        run_part,
        train_loop_config=submission.trial(part, board, mark),
        torch_config=RendezvousConfig(),
        scaling_config=ScalingConfig(**submission.scaling()),
        run_config=RunConfig(
            name=f"{part.name.replace('/', '-')}-{time.time_ns()}",
            failure_config=FailureConfig(max_failures=submission.cluster.max_failures),
            **_storage(submission.job.run),
        ),
    )


def run_alone(submission: Submission, part: Part, board: Any, mark: str) -> None:
    """Run a part that is one independent process as a plain task of Ray, which restarts it when it is lost or fails."""
    import ray

    from launch.ray.worker import run_part

    need = dict(submission.cluster.per_worker)
    task = ray.remote(
        num_cpus=need.pop("CPU"),
        num_gpus=need.pop("GPU", 0.0),
        resources=need,
        max_retries=submission.cluster.max_failures,
        retry_exceptions=True,
    )(run_part)
    ray.get(task.remote(submission.trial(part, board, mark)))


def _storage(run: str) -> dict[str, Any]:
    """Return Ray's storage options: its files go into the run folder, through the same client as all others."""
    url = f"{run}/{LAUNCH}/ray"
    if "://" not in run:
        return {"storage_path": url}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = client(url, what="run")
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}
