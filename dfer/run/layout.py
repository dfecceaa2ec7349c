"""Read a run folder's results and committed checkpoints without training. Imports no torch, so that status, logs and
launchers start fast.

    RUN/results/test.json                 the result of a complete training, or of weights that are not trained here
    RUN/results/test-step_00000123.json   an evaluation of an incomplete training; the run is not finished by it
    RUN/results/other-NAME.json           the same weights on other clips, or seen otherwise; never the run's result

Each has a file of predictions with the same stem beside it.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfer.errors import CheckpointError, message
from dfer.run.lease import LEASES, LeaseId, Leases
from dfer.storage import Folder
from dfer.yaml_text import YamlProblem, parse

RESULTS = "results"
RESULT = "results/test.json"
OWNER = "results/run.txt"
"""In a folder of `--out`: the run that its results are of."""
MAX_RESULT_BYTES = 16 * 2**20
CONFIG, MAX_CONFIG_BYTES = "config.yaml", 2**20
CHECKPOINTS = "checkpoints"
PROGRESS = "progress.json"
"""Of an independent part of a job: clips done (`step`), clips_per_s, eta_s, time, and `complete` at its end."""
MANIFEST = "manifest.json"
"""A checkpoint's manifest. It is written last; a checkpoint without it does not count."""
_EVALUATION = re.compile(r"test-step_([0-9]{8,12})\.json")
_OTHER = re.compile(r"other-[A-Za-z0-9_.-]{1,200}\.json")
_NAME = re.compile(r"step_([0-9]{8,12})-g([0-9]{1,9})-([0-9a-f]{8})")


@dataclass(frozen=True, kw_only=True, order=True)
class Name:
    """Name of a checkpoint: updates done when it was written, and the lease that wrote it."""

    step: int
    lease: LeaseId

    def __str__(self) -> str:
        return f"step_{self.step:08d}-{self.lease}"

    @classmethod
    def parse(cls, text: str) -> "Name | None":
        """Parse a folder's name; None when it is not a checkpoint's."""
        match = _NAME.fullmatch(text)
        return match and cls(step=int(match[1]), lease=LeaseId(generation=int(match[2]), token=match[3]))


def committed(home: Folder) -> list[Name]:
    """List the committed checkpoints of a run folder that belong to the run, newest first.

    Raises:
        StorageError, CheckpointError: checkpoints or leases cannot be read.
    """
    folder, leases = home / CHECKPOINTS, Leases(home)
    there = [name for name in present(folder) if (folder / str(name)).exists(MANIFEST)]
    return [name for name in there if leases.holds(name.lease, name.step)]


def present(folder: Folder) -> list[Name]:
    """List all checkpoint folders, newest first; other names are ignored."""
    found = [Name.parse(text) for text in folder.folders()]
    return sorted((name for name in found if name), reverse=True)


def is_trained(home: Folder) -> bool:
    """Whether training has been started in a run folder."""
    return home.exists(CHECKPOINTS) or home.exists(LEASES)


def is_evaluated(home: Folder) -> bool:
    """Whether a folder holds the evaluation of weights that were not trained in it. Raises CheckpointError."""
    return not is_trained(home) and (result_values(home, RESULT) or {}).get("step") == 0


def result_name(step: int, *, complete: bool) -> str:
    """Return the file name of a result, relative to the run folder. step: of the evaluated checkpoint."""
    return RESULT if complete else f"{RESULTS}/test-step_{step:08d}.json"


def predictions_name(result: str) -> str:
    """Return the file name of the predictions that belong to a result file."""
    return f"{result.removesuffix('.json')}_predictions.csv"


def evaluations(home: Folder) -> list[str]:
    """List evaluations of an incomplete training, relative to the run folder, latest step first."""
    found = [_EVALUATION.fullmatch(name) for name in (home / RESULTS).children()]
    return [f"{RESULTS}/{match[0]}" for match in sorted((m for m in found if m), key=lambda m: -int(m[1]))]


def other_name(parts: Sequence[str]) -> str:
    """Return the file name of a result on other clips or views, relative to the run folder. parts: what differs."""
    return f"{RESULTS}/other-{'-'.join(re.sub('[^A-Za-z0-9_.]+', '_', part)[:60] for part in parts)}.json"


def others(home: Folder) -> list[str]:
    """List the results on other clips or views, relative to the run folder, by name."""
    return [f"{RESULTS}/{name}" for name in sorted((home / RESULTS).children()) if _OTHER.fullmatch(name)]


def finished(home: Folder, epochs: int | None = None) -> bool:
    """Whether the run in a folder is finished: it has the result of a complete training.

    epochs: number of epochs that the training must have; None = as in config.yaml. A run whose epochs were raised is
    finished again once it has trained that many.

    Raises:
        CheckpointError: the result cannot be parsed. StorageError: the folder cannot be read.
    """
    plain = result_values(home, RESULT)
    if plain is None or plain.get("complete") is not True:
        return False
    wanted = configured_epochs(home) if epochs is None else epochs
    return not plain.get("epochs") or wanted in (None, plain["epochs"])


def note_progress(home: Folder, *, step: int, complete: bool) -> None:
    """Write PROGRESS, which tells `dfer-launch status` that a part without RESULT is finished. step: what is done.

    Raises:
        StorageError.
    """
    home.write(PROGRESS, (json.dumps({"step": step, "complete": complete, "time": time.time()}) + "\n").encode())


def result_values(home: Folder, name: str) -> dict[str, Any] | None:
    """Read the JSON object in a result file; adds `complete` and `epochs`, which older versions did not write.

    None when there is no such file. Other values are not checked; `dfer.evaluation.results.read_result` checks them.

    Raises:
        CheckpointError: it is no JSON object. StorageError: it cannot be read, or is larger than MAX_RESULT_BYTES.
    """
    data = home.read(name, most=MAX_RESULT_BYTES)
    if data is None:
        return None
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(home, name, str(error)[:200]) from error
    if not isinstance(plain, dict):
        raise _damaged(home, name, type(plain).__name__)
    if "complete" not in plain and "epochs" not in plain:
        plain |= _completeness(home, plain)
    return plain


def _damaged(home: Folder, name: str, got: str) -> CheckpointError:
    do = "Delete it and evaluate again."
    return CheckpointError(message(home.where(name), expected="a JSON object", got=got, do=do))


def _completeness(home: Folder, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Derive `complete` and `epochs` for the result of an older version, whose `dfer evaluate` wrote it at any time.

    Weights that are not trained here have step 0 and are complete. A training is complete if the evaluated checkpoint
    is of the last epoch. A selected checkpoint may be of any epoch: then the newest checkpoint decides, whose step is
    epochs x steps per epoch; if all were removed, the run cannot resume and counts as complete.
    """
    step, epoch, epochs = plain.get("step"), plain.get("epoch"), configured_epochs(home)
    if step == 0:
        return {"complete": True, "epochs": 0}
    if not isinstance(step, int) or not isinstance(epoch, int) or epochs is None or epoch == epochs:
        return {"complete": True, "epochs": epochs or epoch}
    if plain.get("selection") == "last" or epoch < 1:
        return {"complete": False, "epochs": epochs}
    newest = next((name.step for name in committed(home)), None)
    return {"complete": newest is None or newest * epoch >= epochs * step, "epochs": epochs}


def configured_epochs(home: Folder) -> int | None:
    """Return `epochs` of a run folder's config.yaml; None when it cannot be read from it."""
    try:
        plain = parse(home.read(CONFIG, most=MAX_CONFIG_BYTES) or b"")
    except YamlProblem:
        return None
    epochs = plain.get("epochs") if isinstance(plain, Mapping) else None
    return epochs if isinstance(epochs, int) else None
