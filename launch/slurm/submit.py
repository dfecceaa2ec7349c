"""SLURM: the parts as one job array, and a job after them that writes the table. Safe to run twice.

The queue itself tells which parts wait or run: jobs are named after the run folder and carry their parts as a comment.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from dfer.errors import StorageError, UsageError, message
from dfer.jobs.parts import Part, in_order
from dfer.storage import Folder
from launch.cluster import SlurmCluster
from launch.job import LAUNCH, Job, report
from launch.records import Record, keep, one_at_a_time, tag
from launch.slurm.checks import REPORT_MINUTES, check, explain, report_minutes
from launch.slurm.task import PartTask, ReportTask
from launch.slurm.tools import Queued, comment_of, of_another_job, queued, settled, slurm

SCRIPTS = "slurm"
_SET_ALWAYS = ("ARRAY_INX", "COMMENT", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "REQUEUE", "SIGNAL", "TIMELIMIT")
"""Options that every script sets, by the names of sbatch's variables."""


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor, which can also format a script on a machine without SLURM, for `--dry-run`."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self, tasks: int) -> str:
        """Format the script that would be submitted for this number of tasks."""
        more = {"map_count": tasks} if tasks > 1 else {}
        return str(_sbatch(self._submitit_command_str, self.folder, {**self.parameters, **more}))


def _sbatch(command: str, folder: Path, parameters: dict[str, Any]) -> str:
    from submitit.slurm.slurm import _make_sbatch_string  # submitit has no public function for it

    return str(_make_sbatch_string(command=command, folder=folder, **parameters))


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job for a SLURM cluster: formats its scripts and submits them."""

    job: Job
    cluster: SlurmCluster

    @property
    def folder(self) -> Path:
        """Folder of scripts and logs, on a disk that all hosts share.

        Raises:
            UsageError: the run is in an object store, and no other folder is configured.
        """
        if self.cluster.folder:
            return Path(self.cluster.folder).absolute() / tag(self.job.run)
        home = Folder(self.job.run, what="run").local
        if home is None:
            do = "Set cluster.folder=FOLDER to a folder that all hosts share."
            expected = "a shared folder for scripts and logs"
            raise UsageError(message("folder", expected=expected, got=f"a run in {self.job.run}", do=do))
        return home / LAUNCH / SCRIPTS

    def name(self, what: str) -> str:
        """Return the name of this run's jobs in the queue."""
        return f"dfer-{tag(self.job.run)}-{what}"

    def dry_run(self) -> str:
        """Format the scripts that would be submitted."""
        parts = self._parts_executor(self.job.parts).text(len(self.job.parts))
        after = self._report_executor(["PARTS"], REPORT_MINUTES).text(1)
        return f"# parts {_listed(self.job.parts)}\n{parts}\n# then the report\n{after}"

    def submit(self) -> int:
        """Submit the parts that are neither finished nor in the queue, and the report after them.

        Raises:
            UsageError, StorageError: a check before the submission failed, or sbatch refused it.
        """
        notes, minutes = check(self.cluster), report_minutes(self.cluster)
        home = Folder(self.job.run, what="run")
        _probe(home, self.folder)
        with one_at_a_time(self.folder):
            live = settled(self.name("parts"))
            there = {task.part: task for task in live if task.part is not None}
            done = self.job.done()
            wanted = [part for part in self.job.parts if part.name not in there and part not in done]
            _tell(done, there)
            if wanted:
                self._submit(home, wanted, live, minutes)
                for note in notes:
                    print(f"note: {note}", flush=True)
        if not wanted and not there:
            report(self.job)
        elif not wanted:
            if not queued(self.name("report")):  # an earlier submission was interrupted, or the report cancelled
                number = self._submit_report({task.job.partition("_")[0] for task in live}, minutes)
                print(f"submitted the report as job {number}")
            print(_next(self.job.run))
        return 0

    def _submit(self, home: Folder, wanted: Sequence[Part], live: Sequence[Queued], minutes: int) -> None:
        executor = self._parts_executor(wanted)
        tasks = [self._task(part) for part in wanted]
        try:
            with _own_words(self.cluster), executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except FailedJobError as error:
            raise explain(str(error), self.cluster) from error
        array = jobs[0].job_id.partition("_")[0]
        record = Record(
            launcher="slurm",
            job=array,
            submitted=datetime.now(UTC).isoformat(timespec="milliseconds"),
            revision=self.job.revision,
            tasks={part.name: job.job_id for part, job in zip(wanted, jobs)},
            folder=str(self.folder),
        )
        keep(home, record)
        try:
            last = self._submit_report({task.job.partition("_")[0] for task in live} | {array}, minutes)
        except UsageError:
            slurm("scancel", array)
            raise
        keep(home, replace(record, report=last))
        print(f"submitted {_listed(wanted)} as job {array}, the report as job {last}")
        print(_next(self.job.run), flush=True)

    def _submit_report(self, after: Iterable[str], minutes: int) -> str:
        """Submit the job that writes the report after these jobs have ended; returns its number.

        Raises:
            UsageError: sbatch refuses it.
        """
        executor = self._report_executor(sorted(after), minutes)
        try:
            with _own_words(self.cluster):
                return str(executor.submit(ReportTask(job=self.job)).job_id)
        except FailedJobError as error:
            raise explain(str(error), self.cluster, report=True) from error

    def _task(self, part: Part) -> PartTask:
        cluster = self.cluster
        return PartTask(
            job=self.job,
            part=part,
            cpus=cluster.cpus_per_process,
            gpu=cluster.gpus_per_node > 0,
            interface=cluster.interface,
            meet_s=cluster.meet_s,
        )

    def _parts_executor(self, parts: Sequence[Part]) -> _Executor:
        """Make the executor of the job array. srun does not end ranks that still save when one is done, and does not
        let ranks hang long after another has ended."""
        cluster = self.cluster
        executor = self._executor()
        words = ["-m", "launch.slurm.retry", str(executor.folder), str(cluster.max_failures)]
        retry = f"{executor.python} {shlex.join(words)}"
        executor.update_parameters(
            job_name=self.name("parts"),
            comment=comment_of([part.name for part in parts]),
            time=cluster.minutes,
            nodes=cluster.nodes,
            cpus_per_task=cluster.cpus_per_process,
            gpus_per_node=cluster.gpus_per_node or None,
            mem=_gigabytes(cluster.memory_gb),
            signal_delay_s=cluster.signal_s,
            array_parallelism=cluster.parallel_parts,
            constraint=cluster.constraint,
            exclude=cluster.exclude,
            partition=cluster.partition,
            account=cluster.account,
            qos=cluster.qos,
            srun_args=[*_each_host(cluster), "--kill-on-bad-exit=0", "--wait=60"],
            setup=[*cluster.setup, "set +e"],  # the lines after srun decide on a retry
            teardown=["code=$?", f'[ "$code" -eq 0 ] || {retry} "$code"', 'exit "$code"'],
            additional_parameters={"requeue": True, **_range(cluster), **cluster.options},
            **({} if cluster.elastic else {"ntasks_per_node": cluster.processes}),
        )
        return executor

    def _report_executor(self, after: Sequence[str], minutes: int) -> _Executor:
        executor = self._executor()
        executor.update_parameters(
            job_name=self.name("report"),
            time=minutes,
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=1,
            dependency="afterany:" + ":".join(after),
            setup=list(self.cluster.setup) or None,
            additional_parameters={"requeue": True, **self.cluster.report},
            partition=self.cluster.partition,
            account=self.cluster.account,
            qos=None if "partition" in self.cluster.report else self.cluster.qos,
        )
        return executor

    def _executor(self) -> _Executor:
        return _Executor(self.folder, max_num_timeout=self.cluster.max_timeouts, python=self.cluster.python)


@contextmanager
def _own_words(cluster: SlurmCluster) -> Iterator[None]:
    """Hide the variables by which sbatch would override the script, such as SBATCH_ACCOUNT in a user's profile: the
    cluster file was checked, so it decides. Variables for keys that it leaves open stay visible.

    Also hides the variables of an interactive job from which this is called: they would bind the new job to it."""
    said = {
        "ACCOUNT": cluster.account,
        "PARTITION": cluster.partition or cluster.report.get("partition"),
        "QOS": cluster.qos,
        "CONSTRAINT": cluster.constraint,
        "MEM_PER_NODE": cluster.memory_gb,
        "GPUS_PER_NODE": cluster.gpus_per_node,
    }
    names = [*_SET_ALWAYS, *(name for name, value in said.items() if value)]
    said_twice = [name for name in map("SBATCH_{}".format, names) if name in os.environ]
    if said_twice:
        print(f"note: the cluster file counts, not {', '.join(sorted(said_twice))}", file=sys.stderr, flush=True)
    hidden = [*said_twice, *filter(of_another_job, os.environ)]
    kept = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(kept)


def _each_host(cluster: SlurmCluster) -> list[str]:
    return [f"--ntasks-per-node={cluster.processes}", f"--cpus-per-task={cluster.cpus_per_process}"]


def _range(cluster: SlurmCluster) -> dict[str, str]:
    """Return sbatch's options for a range of hosts. SLURM gives a job that specifies its tasks the minimum of hosts,
    not the maximum; so the job specifies the cores needed per host, and srun the tasks."""
    if not cluster.elastic:
        return {}
    cores = cluster.processes * cluster.cpus_per_process
    return {"nodes": f"{cluster.min_nodes}-{cluster.nodes}", "mincpus": str(cores)}


def _gigabytes(number: float | None) -> str | None:
    return None if number is None else f"{round(number * 1024)}M"


def _probe(home: Folder, scripts: Path) -> None:
    """Check before the submission that the folders can be written."""
    name = f"{LAUNCH}/.probe"
    home.write(name, b"")
    home.remove(name)
    try:
        scripts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        do = "Check the path and its permissions."
        raise StorageError(message(scripts, expected="to write scripts and logs", got=str(error), do=do)) from error


def _listed(parts: Sequence[Part]) -> str:
    return ", ".join(part.name for part in parts)


def _tell(done: Sequence[Part], there: dict[str, Queued]) -> None:
    if done:
        print(f"finished already: {_listed(done)}")
    for name, task in sorted(there.items(), key=lambda item: in_order(item[0])):
        print(f"in the queue already: {name} as job {task.job}, {task.state.lower()}")


def _next(run: str) -> str:
    word = shlex.quote(run)
    return f"  dfer-launch status {word}\n  dfer-launch logs {word} PART\n  dfer-launch cancel {word}"
