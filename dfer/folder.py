"""The run folder: who wrote it, with what configuration, in which environment.

RUN/config.yaml         resolved configuration; training on an existing folder continues only the same one
RUN/environment.json    versions, revision, command, hardware
RUN/metrics.jsonl  RUN/checkpoints/step_N/  RUN/results/*.json  RUN/report/
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from dfer.config import flat, is_free, to_plain, to_yaml
from dfer.distributed import World, from_first
from dfer.errors import CheckpointError, DferError, UsageError
from dfer.evaluation.results import publish

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "deepspeed", "numpy", "simplejpeg", "webdataset", "dfer")


def check(folder: Path, config: Any, world: World) -> None:
    """Check that the run folder is new, or holds a run of the same configuration. Writes nothing; all ranks call it.

    Raises:
        UsageError: the folder holds something else. CheckpointError: it holds another configuration.
    """
    _on_first(lambda: _check(folder, config), world)


def write(folder: Path, config: Any, world: World, *, finished: bool = False) -> None:
    """Make the run folder once everything else is known to fit, so that a mistake does not stand in it.

    All ranks call it; the first one writes. finished: the run's results stand, so the environment that they came from
    does too.

    Raises:
        StorageError: it cannot be written.
    """

    def work() -> None:
        publish(folder / CONFIG, lambda: to_yaml(config))
        if not finished:
            publish(folder / ENVIRONMENT, lambda: json.dumps(environment(world), indent=1) + "\n")

    _on_first(work, world)


def _on_first(work: Callable[[], None], world: World) -> None:
    """Do it on the first rank, since the others could meet its files half made; its error is everybody's."""
    problem: DferError | None = None
    if world.is_first:
        try:
            work()
        except DferError as error:
            problem = error
    problem = from_first(problem)
    if problem is not None:
        raise problem


def _check(folder: Path, config: Any) -> None:
    existing = folder / CONFIG
    if existing.exists():
        _refuse_changes(folder, before=_plain_yaml(existing), now=to_plain(config))
    elif folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise UsageError(
            f"{folder}: expected an empty folder or a run folder with {CONFIG}, got other files. "
            "Choose another one with run=FOLDER."
        )


def _is_empty(folder: Path) -> bool:
    """Nothing but what a process left that was killed at its first file."""
    return all(path.name.startswith(f".{CONFIG}.") for path in folder.iterdir())


def environment(world: World) -> dict[str, Any]:
    """Versions, revision, command and hardware of this run: what somebody needs to judge or repeat it."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "revision": revision(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "processes": world.size,
        "device": device,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def revision() -> str:
    """The git revision of the code, with `-dirty` when it was changed; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or "unknown"
    return f"CPU {name}, {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain_yaml(path: Path) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not valid YAML ({what}). Choose another run folder.") from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"{path}: expected a configuration, got {type(plain).__name__}. Choose another run folder."
        )
    return plain


def _refuse_changes(folder: Path, *, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = flat(before), flat(now)
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not is_free(k))
    if changed:
        listed = "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed[:5])
        raise CheckpointError(
            f"{folder}: expected the configuration it was started with, got {len(changed)} changed keys ({listed}). "
            "Choose another folder with run=FOLDER, or change them back."
        )
