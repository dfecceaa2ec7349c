"""Progress of a run: state, step, speed, checkpoint and restarts of every part, from its folder and its scheduler."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfer.errors import CheckpointError, UsageError, message
from dfer.jobs.parts import in_order, parts_in
from dfer.run.layout import PROGRESS, RESULT, committed, finished, is_trained, result_values
from dfer.run.lease import Leases
from dfer.storage import Folder
from launch.records import Record, records, tag
from launch.slurm.tools import Queued, ended, followed

HEARTBEAT_TIMEOUT_S = 60.0
"""A Ray job that has not written its record for this long is considered lost."""


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """Status of one part. part: its name.

    state: waiting, running, finished, failed, stopped, lost, begun, unknown. why: the scheduler's reason, or an error.
    step, clips_per_s, eta_s, loss: of the last recorded step; of an independent part, `step` is the number of its clips
    that are done. age_s: seconds since that step. checkpoint: step of the last checkpoint.
    """

    part: str
    state: str
    why: str = ""
    step: int | None = None
    loss: float | None = None
    clips_per_s: float | None = None
    eta_s: float | None = None
    age_s: float | None = None
    checkpoint: int | None = None
    restarts: int = 0
    uar: float | None = None
    hosts: str = ""
    job: str = ""


def status(run: str, *, now: float | None = None) -> list[PartStatus]:
    """Return the status of all parts that have begun or were submitted.

    Raises:
        UsageError: no job was ever started in this folder.
    """
    home = Folder(run, what="the run folder")
    kept = records(home)
    there = {part.name for part in parts_in(home)}
    queue = followed(f"dfer-{tag(run)}-parts")
    unknown, tasks = (queue, []) if isinstance(queue, str) else ("", queue)
    live = {task.part: task for task in tasks if task.part is not None}
    names = sorted(there | {name for record in kept for name in record.tasks} | {*live}, key=in_order)
    if not names:
        do = "Correct the address, or start it: dfer-launch local, slurm or ray CONFIG."
        raise UsageError(message(home, expected="the run folder of a job", got="no part in it", do=do))
    past = _past(kept, live)
    return [_part(home, name, kept, live.get(name), past, now or time.time(), unknown) for name in names]


def _past(kept: Sequence[Record], live: Mapping[str, Queued]) -> dict[str, str]:
    tasks = {job for record in kept if record.launcher == "slurm" for job in record.tasks.values()}
    return ended(sorted(tasks - {task.job for task in live.values()}))


def _part(
    home: Folder,
    name: str,
    kept: Sequence[Record],
    task: Queued | None,
    past: Mapping[str, str],
    now: float,
    unknown: str,
) -> PartStatus:
    """Return the status of one part. unknown: why SLURM's queue could not be read, else empty."""
    folder = home / name
    record = next((record for record in reversed(kept) if name in record.tasks), None)
    job = record.tasks[name] if record else ""
    facts = _facts(folder, now)
    try:
        done = finished(folder)
    except CheckpointError as problem:
        return PartStatus(part=name, state="unknown", why=str(problem), job=job, **{**facts, "eta_s": None})
    if done:
        return PartStatus(part=name, state="finished", uar=_uar(folder), job=job, **{**facts, "eta_s": None})
    if task is not None:
        state = {"RUNNING": "running", "PENDING": "waiting"}.get(task.state, task.state.lower())
        why = "" if task.reason in ("None", "") else task.reason
        return PartStatus(part=name, state=state, why=why, hosts=task.hosts, job=task.job, **facts)
    if _progress(folder).get("complete") is True:
        return PartStatus(part=name, state="finished", job=job, **{**facts, "eta_s": None})
    state, why = _without_task(home, record, name, past, now, unknown)
    return PartStatus(part=name, state=state, why=why, job=job, **{**facts, "eta_s": None})


def _uar(folder: Folder) -> float | None:
    found = (result_values(folder, RESULT) or {}).get("uar")
    return found if isinstance(found, float) else None


def _without_task(
    home: Folder, record: Record | None, name: str, past: Mapping[str, str], now: float, unknown: str
) -> tuple[str, str]:
    """Return the state, and the reason, of a part that is neither finished nor in SLURM's queue."""
    if record is None:
        return "begun", "started without a scheduler; its process knows more"
    job = record.tasks[name]
    if record.launcher == "ray":
        state, _, why = record.states.get(name, "waiting").partition(": ")
        if state in ("waiting", "running") and now - record.beat > HEARTBEAT_TIMEOUT_S:
            return "lost", "its Ray job is gone; the same command continues"
        return state, why
    failure = Path(record.folder) / f"{job}_failure.json"
    if failure.exists():
        return "failed", str(json.loads(failure.read_text())["text"])
    was = past.get(job, "")
    if was == "COMPLETED" and not is_trained(home / name):  # a training is only finished with its result
        return "finished", ""
    if was.startswith("CANCELLED"):
        return "stopped", "cancelled; the same command continues"
    if not was and unknown:
        return "unknown", f"SLURM was not asked or did not answer: {unknown}"
    return "failed", f"{was or 'left the queue'}; dfer-launch logs tells more, the same command continues"


def _facts(folder: Folder, now: float) -> dict[str, Any]:
    """Collect the fields of PartStatus that come from the part's folder."""
    last = _last_step(folder) or _progress(folder)
    return {
        **{key: last.get(key) for key in ("step", "loss", "clips_per_s", "eta_s")},
        "age_s": round(now - last["time"], 1) if "time" in last else None,
        "checkpoint": next((name.step for name in committed(folder)), None),
        "restarts": max(0, len(Leases(folder).ids()) - 1),
    }


def _last_step(folder: Folder) -> dict[str, Any]:
    """Return the last complete record of a training step."""
    for line in reversed((folder.text("metrics.jsonl") or "").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "train":
            return record
    return {}


def _progress(folder: Folder) -> dict[str, Any]:
    """Return the last progress of an independent part; empty if it has recorded none."""
    try:
        found = json.loads(folder.text(PROGRESS) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# --- output for people and programs


def table(rows: Sequence[PartStatus]) -> str:
    """Format the parts as a table, followed by the reasons for those with a problem."""
    head = ("part", "state", "step", "loss", "clips/s", "ETA", "checkpoint", "restarts", "UAR", "job", "hosts")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*text, *(f"{row.part}: {row.why}" for row in rows if row.why)])


def _cells(row: PartStatus) -> tuple[str, ...]:
    return (
        row.part,
        row.state,
        _or(row.step, "{}"),
        _or(row.loss, "{:.3f}"),
        _or(row.clips_per_s, "{:.1f}"),
        "-" if row.eta_s is None else duration(row.eta_s),
        _or(row.checkpoint, "{}"),
        str(row.restarts),
        _or(None if row.uar is None else 100 * row.uar, "{:.2f}"),
        row.job or "-",
        row.hosts or "-",
    )


def _or(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def duration(seconds: float) -> str:
    """Format as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def as_json(rows: Sequence[PartStatus]) -> str:
    """Format the parts as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1)
