"""Ray: every fold a TorchTrainer, beside each other as far as there is room, then the report.

The same command works from a driver and inside `ray job submit`. A job that is submitted twice finds finished folds,
takes over the others, and the first one ends; so there is one result, once.
"""

import json
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from dfer.errors import FencedError, ProcessError, StoppedError, StorageError, message
from dfer.evaluation.results import RESULT
from dfer.storage import Folder, client
from launch.cluster import RayCluster
from launch.job import LAUNCH, PROJECT, Job, conclude
from launch.ray_cluster import connected, folds_in, in_ray_job, submission_id, too_small
from launch.records import Record, keep

BEAT_S = 10.0
POLL_S = 0.5
PACKAGES = ("dfer", "launch", "shards")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job for a Ray cluster."""

    job: Job
    cluster: RayCluster

    def dry_run(self) -> str:
        """What Ray would be asked for."""
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
        """What every host gets: the code of this checkout, unless the job brought it along as its working folder."""
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
        done = [fold for fold in self.job.folds if (home / f"fold_{fold}").size(RESULT) is not None]
        if done:
            print(f"finished already: fold {', '.join(map(str, done))}", flush=True)
        wanted, code = [fold for fold in self.job.folds if fold not in done], 0
        if wanted:
            with connected(self.cluster, self.runtime_env()) as address:
                driver = _Driver(self, home, wanted, address)
                code = driver.run()
            if code and driver.closed:
                return code
        return conclude(self.job.run, self.job.folds, code)


class _Driver:
    """Looks after the folds, a thread each, as many as there is room for; keeps the record, passes wishes on."""

    def __init__(self, submission: Submission, home: Folder, folds: Sequence[int], address: str) -> None:
        from launch.ray_worker import make_board

        self._submission, self._home, self._waiting = submission, home, list(folds)
        self._board: Any = make_board()
        self._threads: dict[int, threading.Thread] = {}
        self._codes: dict[int, int] = {}
        self.closed = ""
        self._recording = threading.Lock()
        """Held around `_record` and `_beaten`, which the folds' threads change as well."""
        self._beaten = 0.0
        self._unrecorded = False
        self._mark = "" if home.local is None else f"{LAUNCH}/.shared-{secrets.token_hex(8)}"
        number = submission_id()
        self._record = Record(
            launcher="ray", job=number or f"{socket.gethostname()}-{os.getpid()}",
            submitted=datetime.now(UTC).isoformat(timespec="milliseconds"), revision=submission.job.revision,
            tasks={str(fold): number or "driver" for fold in folds}, states={str(fold): "waiting" for fold in folds},
            address=address if number else "", host=socket.gethostname(), pid=os.getpid(),
        )  # fmt: skip

    def run(self) -> int:
        """Until every fold has ended; the exit code of the first that failed.

        Raises:
            UsageError: there is no room for a fold. StorageError: the run folder cannot be written to.
        """
        room = self._room()
        keep(self._home, self._renewed())
        with self._marked(), self._signals():
            while self._waiting or self._threads:
                while self._waiting and len(self._threads) < room and not self.closed:
                    self._start(self._waiting.pop(0))
                if self.closed and not self._threads:
                    break
                time.sleep(POLL_S)
                self._look_after()
        self._beat(force=True)
        codes = [code for code in self._codes.values() if code]
        return FencedError.exit_code if FencedError.exit_code in codes else next(iter(codes), self._stopped())

    def _stopped(self) -> int:
        return StoppedError.exit_code if self.closed and self._waiting else 0

    def _room(self) -> int:
        """Folds at a time. Waits a little for hosts that are just joining.

        Raises:
            UsageError: there is no room for one.
        """
        cluster = self._submission.cluster
        until = time.monotonic() + cluster.wait_s
        while (room := folds_in(cluster)) < 1:
            if time.monotonic() > until:
                raise too_small(cluster)
            time.sleep(1)
        return min(room, cluster.parallel_folds or room)

    def _start(self, fold: int) -> None:
        thread = threading.Thread(target=self._fit, args=(fold,), name=f"fold {fold}", daemon=True)
        self._threads[fold] = thread
        self._say(fold, "running")
        thread.start()

    def _fit(self, fold: int) -> None:
        """In a thread of the fold: Ray starts its processes, again where one is lost, up to `max_failures` times."""
        import ray

        problem = ""
        try:
            trainer(self._submission, fold, self._board, self._mark).fit()
        except Exception as error:
            problem = _first_line(error)
        ending = ray.get(self._board.ending.remote(fold))
        if ending is not None:
            self._codes[fold], text = ending.code, ending.text
        elif problem:
            do = "The same command continues from the last checkpoint."
            expected = f"at most {self._submission.cluster.max_failures} lost processes"
            error_text = message(f"fold {fold}", expected=expected, got=problem, do=do)
            self._codes[fold], text = ProcessError.exit_code, error_text
        else:
            self._codes[fold], text = 0, ""
        if text:
            print(f"error: {text}", file=sys.stderr, flush=True)
        self._say(fold, _state(self._codes[fold]) + (f": {text}" if text else ""))

    def _look_after(self) -> None:
        import ray

        for note in ray.get(self._board.news.remote()):
            print(f"note: {note}", file=sys.stderr, flush=True)
        for fold, thread in list(self._threads.items()):
            if not thread.is_alive():
                del self._threads[fold]
        if FencedError.exit_code in self._codes.values() and not self.closed:
            self._close("a newer copy of this job is at work")
        self._beat()

    def _close(self, reason: str) -> None:
        self.closed = reason
        self._board.wish.remote(reason)

    def _say(self, fold: int, state: str) -> None:
        with self._recording:
            self._record = replace(self._record, states={**self._record.states, str(fold): state})
            self._beaten = 0.0

    def _renewed(self) -> Record:
        with self._recording:
            self._beaten = time.monotonic()
            return replace(self._record, beat=time.time())

    def _beat(self, *, force: bool = False) -> None:
        """Renew the record. Where the store is away it is tried again at the next beat: with the driver all folds would
        end, and they bridge an outage by themselves."""
        if not force and time.monotonic() - self._beaten <= BEAT_S:
            return
        try:
            keep(self._home, self._renewed())
            self._unrecorded = False
        except StorageError as error:
            if not self._unrecorded:
                print(
                    f"note: the folds go on, but `dfer-launch status` is behind: {error}", file=sys.stderr, flush=True
                )
            self._unrecorded = True

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """A file of this driver's own in a run folder on a disk, while folds run: each host has to see it there."""
        if self._mark:
            self._home.write(self._mark, b"")
        try:
            yield
        finally:
            if self._mark:
                with suppress(StorageError):
                    self._home.remove(self._mark)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """`ray job stop`, Ctrl-C: the folds save and end; a second Ctrl-C ends at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self.closed and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._close(signal.Signals(number).name)

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def trainer(submission: Submission, fold: int, board: Any, mark: str) -> Any:
    """Ray's trainer of one fold. Its own files lie in the run folder; checkpoints are the run's, under its fence."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from launch.ray_worker import MeetingConfig, Trial, train_fold

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
    """Where Ray keeps its own files: in the run folder, through the same client as everything else there."""
    url = f"{run}/{LAUNCH}/ray"
    if "://" not in run:
        return {"storage_path": url}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = client(url, what="run")
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _state(code: int) -> str:
    return {0: "finished", StoppedError.exit_code: "stopped", FencedError.exit_code: "stopped"}.get(code, "failed")


def _first_line(error: BaseException) -> str:
    """The cause in few words: Ray's own text is a page long."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {shlex.join(lines[-1:])[:300]}" if lines else type(cause).__name__
