"""Run folders as training would leave them, with invented but likely numbers, for the tests of reports."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dfer.emotions import BASIC7, MAFW11
from dfer.evaluation.results import FoldResult, Protocol, fold_result, save_result
from dfer.evaluation.scores import scores
from dfer.run.layout import RESULT, predictions_name
from dfer.storage import Folder

SHARES = {  # of the classes, and recalls as such models reach them
    "happiness": (0.21, 0.93),
    "sadness": (0.16, 0.74),
    "neutral": (0.23, 0.72),
    "anger": (0.19, 0.75),
    "surprise": (0.13, 0.62),
    "disgust": (0.012, 0.14),
    "fear": (0.078, 0.40),
    "contempt": (0.03, 0.12),
    "anxiety": (0.09, 0.31),
    "helplessness": (0.04, 0.16),
    "disappointment": (0.03, 0.06),
}
ENVIRONMENT = {
    "python": "3.11.14",
    "torch": "2.11.0",
    "cuda": "13.0",
    "deepspeed": "0.19.2",
    "device": "4 x NVIDIA H200",
    "revision": "0123abcd",
    "command": "dfer crossval methods/dfer_clip sets/dfew",
}


def confusion(classes: tuple[str, ...], *, clips: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random counts: class sizes and recalls of SHARES, mistakes drawn to the frequent classes."""
    rng = np.random.default_rng(seed)
    sizes = np.array([SHARES[name][0] for name in classes])
    held = clips * sizes / sizes.sum() * rng.uniform(0.9, 1.1, len(classes))
    rows = []
    for k, name in enumerate(classes):
        recall = float(np.clip(SHARES[name][1] + rng.normal(0, 0.035), 0.02, 0.98))
        wrong = sizes * rng.uniform(0.5, 1.5, len(classes))
        wrong[k] = 0
        chances = (1 - recall) * wrong / wrong.sum()
        chances[k] = recall
        rows.append(tuple(int(c) for c in rng.multinomial(max(1, round(held[k])), chances)))
    return tuple(rows)


def result(*, fold: int = 1, num_folds: int = 5, classes: tuple[str, ...] = BASIC7, **changes: Any) -> FoldResult:
    """A fold's result; fields of FoldResult may be replaced."""
    matrix = changes.pop("confusion", None) or confusion(classes, clips=2341, seed=fold)
    parts = [f"fold_{k}" for k in range(1, num_folds + 1)] if num_folds > 1 else ["train", "test"]
    test = (parts[fold - 1],) if num_folds > 1 else ("test",)
    facts: dict[str, Any] = {
        "dataset": "MAFW" if classes == MAFW11 else "DFEW",
        "method": "DFER-CLIP",
        "fold": fold,
        "num_folds": num_folds,
        "train_partitions": tuple(p for p in parts if p not in test),
        "test_partitions": test,
        "classes": classes,
        "selection": "last",
        "step": 9750,
        "epoch": 50,
        "epochs": 50,
        "complete": True,
        "seed": 1,
        "protocol": Protocol(
            num_frames=16,
            size=224,
            normalisation="none, RGB from 0 to 1",
            augment="random resized crop, flip 0.5, brightness 0.5",
        ),
        "checkpoint": f"fold_{fold}/checkpoints/step_00009750",
        "manifest_sha256": "ab" * 32,
        "finished": f"2026-03-0{fold}T12:34:56Z",
        "seconds": 41.5 + fold,
    }
    return fold_result(scores(matrix), **{**facts, **changes})


def config(*, fold: int = 1, **changes: Any) -> dict[str, Any]:
    """A resolved configuration."""
    plain: dict[str, Any] = {
        "run": f"runs/dfew_dfer_clip/fold_{fold}",
        "seed": 1,
        "fold": fold,
        "data": {
            "shards": "data/dfew",
            "frames": 16,
            "size": 224,
            "workers": 4,
            "augment": {"crop": True, "min_area": 0.08, "flip": 0.5, "brightness": 0.5, "rotation": 0.0},
        },
        "model": {"name": "dfer_clip", "text": "class_descriptor", "num_contexts": 8, "temporal_depth": 1},
        "optim": {
            "name": "sgd",
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "groups": {"image": {"lr": 1e-5}, "temporal": {"lr": 1e-2}, "prompts": {"lr": 1e-3}},
        },
        "epochs": 50,
        "batch": 48,
        "select": "last",
        "published": {
            "uar": 59.61,
            "war": 71.25,
            "source": "Zhao & Patras, BMVC 2023, table 1",
            "selection": "best_on_test",
        },
    }
    return {**plain, **changes}


def metrics(*, fold: int, epochs: int = 50, steps_per_epoch: int = 195) -> list[dict[str, Any]]:
    """Records as dfer.training.log writes them, of a training run: every ten steps, and an evaluation every epoch."""
    rng = np.random.default_rng(100 + fold)
    records = []
    for step in range(10, epochs * steps_per_epoch + 1, 10):
        epoch = step // steps_per_epoch
        factor = 0.1 ** sum(epoch >= m for m in (30, 40))
        rates = {"image": 1e-5 * factor, "temporal": 1e-2 * factor, "prompts": 1e-3 * factor}
        loss = 0.45 + 1.4 * math.exp(-step / 2500) + rng.normal(0, 0.06)
        speed = {"clips_per_s": 610 + 12 * fold + rng.normal(0, 25), "data_wait": abs(rng.normal(0.02, 0.01))}
        train = {"loss": loss, "terms": {"cross_entropy": loss}, "lr": rates, "grad_norm": None}
        records.append({"kind": "train", "step": step, "epoch": epoch, **train, **speed, "time": 1.77e9})
    for epoch in range(1, epochs + 1):
        war = 0.72 - 0.35 * math.exp(-epoch / 8) + rng.normal(0, 0.006) + 0.005 * fold
        scores_then = {"war": war, "uar": war - 0.12}
        records.append({"kind": "eval", "step": epoch * steps_per_epoch, "epoch": epoch, **scores_then})
    return records


def predictions(found: FoldResult, *, seed: int = 0, sure: float = 0.75) -> str:
    """Predictions with the counts of a result. Runs of the same fold have the same keys if they have as many clips of
    every class; sure: mean probability of the predicted class."""
    rng = np.random.default_rng(seed)
    lines = [",".join(["key", "label", "predicted", *found.classes])]
    for label, row in zip(found.classes, found.confusion):
        chosen = rng.permutation(np.repeat(np.arange(len(row)), row))
        for number, k in enumerate(chosen.tolist()):
            shares = np.full(len(row), 0.0)
            top = float(np.clip(rng.beta(6 * sure, 6 * (1 - sure)), 1 / len(row) + 0.01, 0.999))
            shares[:] = (1 - top) / (len(row) - 1)
            shares[k] = top
            numbers = ",".join(f"{share:.6f}" for share in shares)
            lines.append(f"{found.fold}/{label}_{number:04d},{label},{found.classes[k]},{numbers}")
    return "\n".join(lines) + "\n"


def write_predictions(folder: Path, found: FoldResult, *, file: str = RESULT, **changes: Any) -> None:
    """The predictions beside a result."""
    Folder(folder).write(predictions_name(file), predictions(found, **changes).encode())


def write_fold(folder: Path, found: FoldResult, *, plain: dict[str, Any] | None = None, curves: bool = True) -> Path:
    """One finished fold or single run."""
    save_result(found, Folder(folder))
    plain = config(fold=found.fold) if plain is None else plain
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    if curves:
        lines = [json.dumps(record) for record in metrics(fold=found.fold)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_crossval(
    run: Path, *, classes: tuple[str, ...] = BASIC7, done: tuple[int, ...] = (1, 2, 3, 4, 5), curves: bool = True
) -> Path:
    """A cross-validation over five folds of which `done` have finished; the next one has begun."""
    for fold in done:
        write_fold(run / f"fold_{fold}", result(fold=fold, classes=classes), curves=curves)
    if len(done) < 5:
        begun = run / f"fold_{max(done) + 1}"
        begun.mkdir()
        (begun / "config.yaml").write_text(yaml.safe_dump(config(fold=max(done) + 1)))
    return run


def write_seeds(
    run: Path, parts: Sequence[tuple[int, int]], *, planned: Sequence[int] = (), curves: bool = False, **changes: Any
) -> Path:
    """A cross-validation that is repeated: a result for each of these seeds and folds. planned: all its seeds."""
    for seed, fold in parts:
        found = result(fold=fold, seed=seed, confusion=confusion(BASIC7, clips=2341, seed=100 * seed + fold), **changes)
        plain = config(fold=fold, seed=seed, seeds=[*planned])
        write_fold(run / f"seed_{seed}" / f"fold_{fold}", found, plain=plain, curves=curves)
    return run


def without_class(found: FoldResult, number: int) -> FoldResult:
    """The same result as if the test split had no clip of one class."""
    matrix = [[0] * len(row) if k == number else list(row) for k, row in enumerate(found.confusion)]
    true = scores(matrix)
    return replace(
        found,
        confusion=true.confusion,
        war=true.war,
        uar=true.uar,
        recall=true.recall,
        count=true.count,
        clips=true.num_clips,
    )
