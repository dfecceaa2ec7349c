"""The model that answers for new clips: a run's selected checkpoint or a saved model. Imports no torch, so that a job
can refuse a wrong one before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfer.config import load_text, to_plain
from dfer.errors import CheckpointError, UsageError, message
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import parts_in
from dfer.jobs.saved import run_of
from dfer.local_files import sha256_of
from dfer.models.config_clivp_fer import ClivpFerConfig
from dfer.models.files import files, trains_nothing
from dfer.models.saved import SavedModel, is_saved, open_saved
from dfer.run.layout import CONFIG, MAX_CONFIG_BYTES, RESULT, committed
from dfer.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Answering:
    """config: of the run, or the one that the saved model stores. saved: the saved model; None for a run."""

    config: RunConfig
    saved: SavedModel | None = None

    def identity(self) -> dict[str, Any]:
        """Identify the weights, as plain values, without reading them.

        Raises:
            CheckpointError: the run has no checkpoint, or was not evaluated and trains nothing.
        """
        if self.saved is not None:
            return {"saved_model": self.saved.config.sha256}
        home = Folder(self.config.run)
        if trains_nothing(self.config.model):
            return {"untrained": to_plain(self.config.model), **_hashes(self.config), "seed": self._evaluated(home)}
        newest = next(iter(committed(home)), None)
        if newest is None:
            do = "Train first: dfer train CONFIG"
            raise CheckpointError(message(home, expected="a run with a checkpoint", got="none", do=do))
        return {"newest_checkpoint": str(newest), "select": self.config.select}

    def _evaluated(self, home: Folder) -> int:
        if not home.exists(RESULT):
            do = "Evaluate it first: dfer evaluate CONFIG"
            raise CheckpointError(message(home, expected="an evaluated model", got=f"no {RESULT}", do=do))
        return self.config.seed


def answering(named: str) -> Answering:
    """Find the model in a run folder of one fold, or in a saved model's folder.

    Raises:
        UsageError: it is neither, or the model chooses its caption by the true label.
        CheckpointError: a saved model that is not whole.
    """
    saved = open_saved(named, what="model")
    if saved is not None:
        found = Answering(config=run_of(saved, overrides=[f"data.shards={named}", f"run={named}"]), saved=saved)
    else:
        found = Answering(config=replace(config_of(named), run=named))
    refuse_leak(found.config)
    return found


def refuse_leak(config: RunConfig) -> None:
    """Raise UsageError for a model that chooses its caption by the true label."""
    if isinstance(config.model, ClivpFerConfig) and config.model.leaks_label:
        expected, got = "a model that answers without the true label", "model.caption=true_label, which LEAKS LABEL"
        do = "Train with model.caption=zero_shot or all; a clip to predict has no label."
        raise UsageError(message(config.run, expected=expected, got=got, do=do))


def config_of(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a run folder. Raises UsageError if it is not the folder of a single run."""
    home = Folder(source, what="the run folder")
    text = home.read(CONFIG, most=MAX_CONFIG_BYTES)
    if text is None:
        begun = [part.run for part in parts_in(home) if Folder(part.run).exists(CONFIG)]
        do = f"Give one of its parts: {begun[0]}" if begun else "Train first: dfer train CONFIG"
        raise UsageError(message(home, expected=f"the run folder of one fold, with {CONFIG}", got="none", do=do))
    if is_saved(home):
        got, do = "a saved model", "It is exported already; `dfer predict` and `dfer evaluate MODEL sets/SET` take it."
        raise UsageError(message(home, expected="the run folder of one fold", got=got, do=do))
    return load_text(text, RunConfig, overrides, where=home.where(CONFIG))


def _hashes(config: RunConfig) -> dict[str, str]:
    """Return the SHA-256 of the files that the model is made of, by key; folders and missing files are left out."""
    there = {name: Path(path) for name, path in files(config.model).items() if Path(path).is_file()}
    return {name: sha256_of(path) for name, path in there.items()}
