"""The training function of Ray's processes: trains one part and reports its ending to the driver's board.

Ray restarts a part's processes when one is lost. A restart cannot help after a usage error, damaged data, a fenced run
folder or a stop: these endings are recorded on the board, and a restarted process returns at once.
"""

import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.util import get_node_ip_address

from dfer.errors import DferError, ProcessError, StoppedError, StorageError, UsageError, message
from dfer.interruption import Stop
from dfer.jobs.parts import Part
from dfer.storage import Folder
from launch.job import Job, Place, run_job
from launch.ray.board import Ending, silent
from launch.rendezvous import Rendezvous, free_port

POLL_STOP_S = 1.0
MARK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Arguments of one part's processes. mark: marker file that the driver created in a run folder on a disk."""

    job: Job
    part: Part
    gpu: bool
    interface: str | None
    meet_s: float
    board: Any
    mark: str


def run_part(trial: Trial) -> None:
    """Run the part; Ray calls it in each process."""
    reason = ray.get(trial.board.heartbeat.remote(trial.part.name))
    if reason:  # a stop was requested before the fold's processes started
        ray.get(trial.board.end.remote(trial.part.name, silent(trial.part.name, reason)))
    if trial.part.name in ray.get(trial.board.endings.remote()):
        return
    stop, over = Stop(), threading.Event()
    watch = threading.Thread(target=_watch, args=(trial, stop, over), name="heartbeat", daemon=True)
    watch.start()
    try:
        check_shared(trial)
        where = place(trial) if trial.job.module.grouped else Place(gpu=trial.gpu)
        run_job(trial.job, trial.part, where, stop)
    except DferError as error:
        _tell(trial, error)
        if not isinstance(error, StoppedError):  # raised on all ranks: Ray must not restart them
            raise
    finally:
        over.set()


def check_shared(trial: Trial) -> None:
    """Check that this host sees the driver's marker file; network file systems may show it some seconds late.

    Raises:
        UsageError: this host has another folder at that path, or none.
    """
    home, until = Folder(trial.job.run, what="run"), time.monotonic() + MARK_S
    while trial.mark and not home.exists(trial.mark):
        if time.monotonic() > until:
            do = "Give run=FOLDER on storage that all hosts share, or a URL."
            expected = f"the run folder {home} as the driver's host has it"
            where = f"host {socket.gethostname()}"
            raise UsageError(message(where, expected=expected, got="one without the driver's file", do=do))
        time.sleep(0.2)


def _tell(trial: Trial, error: DferError) -> None:
    if isinstance(error, ProcessError | StorageError):
        ray.get(trial.board.note.remote(f"{trial.part.name}: {error}"))
    else:
        ray.get(trial.board.end.remote(trial.part.name, Ending(code=error.exit_code, text=str(error))))


def _watch(trial: Trial, stop: Stop, over: threading.Event) -> None:
    """Send heartbeats and forward the driver's stop request, on which the ranks agree between two steps."""
    while not over.wait(POLL_STOP_S):
        try:
            reason = ray.get(trial.board.heartbeat.remote(trial.part.name), timeout=10)
        except Exception:
            continue  # the driver's host is slow or lost; if lost, Ray ends this process
        if reason:
            stop.request(reason)


def place(trial: Trial) -> Place:
    """Read the rank info of this process from Ray."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    return Place(
        rank=rank,
        size=size,
        local_rank=context.get_local_rank(),
        local_size=context.get_local_world_size(),
        rendezvous=Rendezvous(
            rank=rank,
            size=size,
            host=os.environ["DFER_MEET_HOST"],
            port=int(os.environ["DFER_MEET_PORT"]),
            token=os.environ["DFER_MEET_TOKEN"],
            interface=trial.interface,
            within_s=trial.meet_s,
        ),
        gpu=trial.gpu,
    )


class RendezvousBackend(Backend):  # type: ignore[misc]
    """Sends the rendezvous address to the processes, which form their process group as with all launchers."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: "RendezvousConfig") -> None:
        """Set the rendezvous variables in all processes; Ray calls it at each start, before the training function."""
        host, port = worker_group.execute_single(0, lambda: (get_node_ip_address(), free_port()))
        found = {"DFER_MEET_HOST": host, "DFER_MEET_PORT": str(port), "DFER_MEET_TOKEN": os.urandom(8).hex()}
        worker_group.execute(lambda: os.environ.update(found))


@dataclass
class RendezvousConfig(TorchConfig):  # type: ignore[misc]
    """Configuration by which TorchTrainer uses RendezvousBackend."""

    @property
    def backend_cls(self) -> type[RendezvousBackend]:
        """Replaces Ray's backend, which would form the process group before the network is tested."""
        return RendezvousBackend
