"""Record a run's metrics: metrics.jsonl first; progress bar, console and TensorBoard show the same dict.

One record per line: `kind` is "train" or "eval" (with the evaluated `split`), `step` the number of updates done. Only
the first rank writes.
"""

import json
import logging
import math
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from dfer.distributed import World, on_first
from dfer.errors import DferError, StorageError
from dfer.run.journal import Journal
from dfer.storage import Folder
from dfer.training.engine import StepReport

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
_log = logging.getLogger("dfer")


class RunLog:
    """Writer of one run folder's records. A resume at `start_step` drops later records, so that a repeated step is
    recorded once.

    Methods do not raise during training, where the other ranks would wait for this one: an error is kept in `problem`,
    nothing more is written, and the ranks agree on the error between two steps.

    total_steps: updates of the whole run; every: steps between two records; progress: show a bar (None: if stderr is a
    terminal), else print one line per record; check: raises when this process may no longer write.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        world: World,
        total_steps: int,
        start_step: int = 0,
        every: int = 1,
        progress: bool | None = None,
        stream: TextIO | None = None,
        check: Callable[[], None] = lambda: None,
        warning: str = "",
    ) -> None:
        """Open the files. warning: stands beside the scores of every evaluation, such as LEAKS LABEL.

        COLLECTIVE. Raises StorageError, and the errors of `check`, on all ranks.
        """
        self._warning = {"warning": warning} if warning else {}
        self._total, self._every, self._active = total_steps, every, world.is_first
        self._skipped = 0
        self._since, self._last_step = _Window(step=start_step), time.monotonic()
        self.problem: DferError | None = None
        self._stream = stream or sys.stderr

        def open_files() -> None:
            self._journal = Journal(folder, METRICS, start_step=start_step, check=check)
            self._board = _TensorBoard(folder / TENSORBOARD, purge_step=start_step + 1)

        on_first(open_files, world)
        if not self._active:
            return
        bar = self._stream.isatty() if progress is None else progress
        self._bar = (
            tqdm(total=total_steps, initial=start_step, unit="step", file=self._stream, dynamic_ncols=True)
            if bar
            else None
        )

    def train(self, report: StepReport, *, step: int, epoch: int, wait_seconds: float, **more: float) -> None:
        """Record one step. step: updates done; wait_seconds: total time waited for data since the start; more: further
        numbers of the step."""
        if not self._active:
            return
        self._skipped += not report.applied
        self._last_step = time.monotonic()
        self._since.clips += report.clips
        if self._bar is not None:
            self._bar.update()
        if step % self._every and step != self._total:
            return
        rates = self._since.rates(step=step, left=self._total - step, wait_seconds=wait_seconds)
        self._since = _Window(step=step, wait_seconds=wait_seconds)
        self._write(
            {
                "kind": "train",
                "step": step,
                "epoch": epoch,
                "loss": report.loss,
                **more,
                "terms": report.terms,
                "lr": report.lr,
                "grad_norm": report.grad_norm if report.applied else None,
                "skipped_steps": self._skipped,
                "loss_scale": report.loss_scale,
                **rates,
            }
        )

    def eval(self, metrics: dict[str, float], *, split: str, step: int, epoch: int) -> None:
        """Record an evaluation after `step` updates, `epoch` epochs. split: `validation` or `test` clips."""
        if self._active:
            # Speed and ETA describe training only.
            self._since.leave_out(time.monotonic() - self._last_step)
            self._write({"kind": "eval", "split": split, "step": step, "epoch": epoch, **metrics, **self._warning})

    def early_stop(self, *, record: float | None, stale: int, step: int, epoch: int) -> None:
        """Record that training ends early. record: best score in percent; stale: evaluations since then."""
        if self._active:
            self._write({"kind": "early_stop", "step": step, "epoch": epoch, "record": record, "stale": stale})

    def clips(self, ids: Sequence[int], *, step: int, epoch: int) -> None:
        """Record which clips made up a step, in the order of the global batch."""
        if self._active:
            self._journal_add({"kind": "clips", "step": step, "epoch": epoch, "clips": list(ids)})

    def bad_clip(self, record: dict[str, Any], *, step: int) -> None:
        """Record a training clip that had to be replaced in the step after `step - 1` updates."""
        if self._active:
            self._write({"kind": "bad_clip", "step": step, **record})

    def sync(self) -> None:
        """Return when all records so far survive a loss of this machine. Raises StorageError, FencedError."""
        if self._active:
            self._journal.sync()
            self._board.sync()

    def close(self) -> None:
        """Close bar and files. Raises StorageError when the last records could not be written."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.close()
        self._board.close(send=self.problem is None)
        try:
            self._journal.close()
        except DferError:
            if self.problem is None:
                raise

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: dict[str, Any]) -> None:
        record = {**record, "time": round(time.time(), 3)}
        if not self._journal_add(record):
            return
        for name, value in flat(record):
            if name not in ("step", "time"):
                self._board.add(f"{curve(record)}/{name}", value, record["step"])
        line = as_line(record, total=self._total)
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        elif record["kind"] == "train":
            self._bar.set_postfix_str(line.partition(": ")[2])
        else:
            self._bar.write(line, file=self._stream)

    def _journal_add(self, record: dict[str, Any]) -> bool:
        """Append a record to the journal; returns whether it was written."""
        if self.problem is None:
            try:
                self._journal.add(json.dumps(record, allow_nan=False))
            except DferError as error:
                self.problem = error
        return self.problem is None


class _Window:
    """Clips and waiting time since the last record."""

    def __init__(self, *, step: int, wait_seconds: float = 0.0) -> None:
        self.clips, self._step, self._wait, self._start = 0, step, wait_seconds, time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Exclude time that was not spent on training."""
        self._start += seconds

    def rates(self, *, step: int, left: int, wait_seconds: float) -> dict[str, float]:
        """Return clips_per_s over all ranks, data_wait as a fraction of the time, and eta_s to the end of the run."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return {
            "clips_per_s": round(self.clips / seconds, 3),
            "data_wait": round(min((wait_seconds - self._wait) / seconds, 1.0), 4),
            "eta_s": round(seconds / max(step - self._step, 1) * left, 1),
        }


def curve(record: dict[str, Any]) -> str:
    """Return the TensorBoard prefix of a record's numbers: `train`, or `eval/test`."""
    return f"{record['kind']}/{record['split']}" if "split" in record else str(record["kind"])


def flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return the finite numbers of a record with dotted names, for TensorBoard."""
    out = []
    for key, value in record.items():
        if isinstance(value, dict):
            out += flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            out.append((prefix + key, float(value)))
    return out


def as_line(record: dict[str, Any], *, total: int) -> str:
    """Format a record as one line for the console."""
    where = f"step {record['step']}/{total} epoch {record['epoch']}"
    if record["kind"] == "bad_clip":
        return f"{where}: clip {record['key']} replaced by {record['replaced_by']}: {record['cause']}"
    if record["kind"] == "early_stop":
        return f"{where}: training ends early: {record['stale']} evaluations without more than {record['record']:.2f} %"
    if record["kind"] == "eval":
        warning = f", {record['warning']}" if "warning" in record else ""
        return f"{where}: eval on {record['split']} clips{warning}: " + " ".join(
            f"{k} {v:.4g}" for k, v in flat(record) if k not in ("step", "epoch", "time")
        )
    skipped = f" skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
    return (
        f"{where}: loss {record['loss']:.4f} {record['clips_per_s']:.1f} clips/s "
        f"waiting {record['data_wait']:.0%} eta {_duration(record['eta_s'])}{skipped}"
    )


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


class _TensorBoard:
    """Writes a copy of the records for TensorBoard. When it cannot be written, it stops with a warning: metrics.jsonl
    has the same numbers and raises its own error when the disk is full. For a remote store, files are written to a
    local temporary folder and sent."""

    def __init__(self, folder: Folder, *, purge_step: int) -> None:
        self._folder = folder
        self._writer: Any = None
        self._aside = None if folder.local else tempfile.TemporaryDirectory(prefix="dfer-tensorboard-")
        self._path = folder.local or Path(self._aside.name if self._aside else "")
        with self._or_give_up():
            self._writer = _summary_writer(self._path, purge_step=purge_step)

    def add(self, name: str, value: float, step: int) -> None:
        with self._or_give_up():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        with self._or_give_up():
            if self._writer is not None:
                self._writer.flush()
            for path in self._path.iterdir() if self._aside else ():
                self._folder.write(path.name, path.read_bytes())

    def close(self, *, send: bool) -> None:
        with self._or_give_up():
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            if send:
                self.sync()
        if self._aside is not None:
            self._aside.cleanup()

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except (OSError, StorageError) as error:
            self._writer = None
            got = getattr(error, "strerror", None) or error
            _log.warning("%s: not written any more (%s); see %s", self._folder, got, METRICS)


def _summary_writer(folder: Path, *, purge_step: int) -> Any:
    # Imported here: it takes a second, and only the first rank needs it. The import causes deprecation warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.utils.tensorboard import SummaryWriter

        _silence_writer_thread()
        return SummaryWriter(str(folder), purge_step=purge_step)


@cache
def _silence_writer_thread() -> None:
    """Suppress tracebacks printed by TensorBoard's thread: the next call raises its errors anyway."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            usual(args)

    threading.excepthook = hook
