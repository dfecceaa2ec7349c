"""The run folder: its recorded configuration and environment.

RUN/config.yaml         resolved configuration; a run resumes only with the same one, except for the changes that its
                        keys allow (`dfer.config.key`)
RUN/environment.json    versions, revision, command, hardware, origin of the initial weights
RUN/metrics.jsonl  RUN/checkpoints/  RUN/lease/  RUN/results/*.json  RUN/report/

It may be on a disk or on any other store that fsspec opens.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer.config import ConfigProblem, from_plain, to_plain, to_yaml
from dfer.errors import CheckpointError, UsageError, message, without_secrets
from dfer.run.changes import computed, noted, objections
from dfer.run.layout import CONFIG, MAX_CONFIG_BYTES
from dfer.storage import Folder
from dfer.yaml_text import YamlProblem, parse

if TYPE_CHECKING:
    from dfer.distributed import World

ENVIRONMENT = "environment.json"
NOTES = "weights"
"""Key of environment.json: notes on the origin of the initial weights."""
REVISION = "DFER_REVISION"
"""Variable in which a launcher passes the revision when the code it ships has no git folder, as with Ray."""

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "deepspeed", "numpy", "simplejpeg", "webdataset", "dfer")


def check(folder: Folder, config: Any) -> None:
    """Check that the run folder is new, or holds a run of the same configuration. Writes nothing.

    Raises:
        UsageError: the folder holds other files. CheckpointError: it holds another configuration.
    """
    if folder.size(CONFIG) is not None:
        before = recorded(folder)
        with suppress(ConfigProblem):  # keys added in later versions get their defaults
            before = to_plain(from_plain(type(config), before))
        _refuse_changes(folder, type(config), before=before, now=to_plain(config))
    elif not _is_free(folder):
        raise UsageError(
            f"{folder}: expected an empty folder or a run folder with {CONFIG}, got other files. "
            "Choose another one with run=FOLDER."
        )


def write(
    folder: Folder, config: Any, world: "World", *, finished: bool = False, notes: Sequence[str] | None = None
) -> None:
    """Write the run folder's configuration and environment, after everything else was checked, so that a faulty
    configuration is not recorded.

    Only the first rank calls it. finished: the run has its results, so the environment that produced them is kept, and
    also the configuration if a key was changed that results note. notes: on the origin of the initial weights; None
    keeps those of an earlier start.

    Raises:
        StorageError: it cannot be written.
    """
    if finished and noted(type(config), recorded(folder)) != noted(type(config), to_plain(config)):
        return
    folder.write(CONFIG, to_yaml(config).encode())
    if not finished:
        said = _notes_before(folder) if notes is None else list(notes)
        folder.write(ENVIRONMENT, (json.dumps({**environment(world), NOTES: said}, indent=1) + "\n").encode())


def recorded(folder: Folder) -> dict[str, Any]:
    """Read the configuration that the run folder holds, as plain values; empty when there is none.

    Raises:
        CheckpointError: the file is no configuration.
    """
    existing = folder.read(CONFIG, most=MAX_CONFIG_BYTES)
    return {} if existing is None else _plain_yaml(folder.where(CONFIG), existing)


def _notes_before(folder: Folder) -> list[str]:
    try:
        found = json.loads(folder.read(ENVIRONMENT, most=MAX_CONFIG_BYTES) or b"{}")
    except (ValueError, RecursionError):
        return []
    notes = found.get(NOTES) if isinstance(found, dict) else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def _is_free(folder: Folder) -> bool:
    """Whether the folder is empty, except for the temporary file of a process killed at its first write."""
    if folder.local is not None and folder.local.exists() and not folder.local.is_dir():
        return False
    return all(name.startswith(f".{CONFIG}.") for name in folder.children())


def environment(world: "World") -> dict[str, Any]:
    """Collect versions, revision, command and hardware of this run, as needed to judge or repeat it."""
    import torch  # imported here: launchers check a folder without torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()
    return {
        "command": [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])],
        "revision": revision(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "processes": world.size,
        "device": device,
        # For convolutions and matrix products on the GPU; the one key engine.tf32 sets both.
        "tf32": torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def revision() -> str:
    """Return the git revision of the code, with `-dirty` for uncommitted changes; outside a checkout the value of
    REVISION, else `unknown`."""
    here = Path(__file__).parent
    found = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
        found = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=False).stdout.strip()
    return found or os.environ.get(REVISION) or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line
            for line in info.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    name = names[0].partition(":")[2].strip() if names else platform.processor() or "unknown"
    return f"CPU {name}, {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain_yaml(path: str, data: bytes) -> dict[str, Any]:
    try:
        plain = parse(data)
    except YamlProblem as problem:
        expected, got = "the configuration of a run", f"not valid YAML ({problem})"
        raise CheckpointError(message(path, expected=expected, got=got, do="Choose another run folder.")) from problem
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"{path}: expected a configuration, got {type(plain).__name__}. Choose another run folder."
        )
    return plain


def _refuse_changes(folder: Folder, kind: type, *, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = computed(kind, before), computed(kind, now)
    different = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    changed = objections(kind, different, before, now)
    if changed:
        listed = "; ".join(
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}{why and f': {why}'}"
            for key, why in list(changed.items())[:5]
        )
        raise CheckpointError(
            f"{folder}: expected the configuration it was started with, got {len(changed)} changed keys ({listed}). "
            "Choose another folder with run=FOLDER, or change them back."
        )
