"""The page of the most confident wrong answers: which clips, in which order, with the right pictures."""

import io
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfer.__main__ import main
from dfer.config import to_yaml
from dfer.data.config import DataConfig
from dfer.errors import CheckpointError
from dfer.evaluation.results import FoldResult, save_result
from dfer.evaluation.scores import scores
from dfer.jobs.errors import worst
from dfer.jobs.fold_data import manifest_hash
from dfer.report.errors import error_page
from dfer.storage import Folder
from dfer.store.shards import Store
from tests import fake_runs
from tests.unit.data.shardkit import CLASSES, Clip, jpeg, write_shards
from tests.unit.jobs.test_train import run_config

LEVELS = {"a": (10, 20, 30, 40, 50), "b": (100,), "c": (60, 70), "d": (200, 210, 220)}
LABELS = {"a": 0, "b": 1, "c": 2, "d": 0}
SAID = {"a": (1, 0.70), "b": (1, 0.99), "c": (0, 0.95), "d": (3, 0.40)}
"""Predicted class and its probability: b is right, the others are wrong."""


def row(key: str) -> str:
    predicted, share = SAID[key]
    shares = [(1 - share) / 6] * 7
    shares[predicted] = share
    return ",".join([key, CLASSES[LABELS[key]], CLASSES[predicted], *(f"{each:.6f}" for each in shares)])


def finished_run(home: Path, **changes: Any) -> FoldResult:
    """A run whose fold 1 tests on the four clips."""
    clips = [Clip(key=key, label=LABELS[key], frames=[jpeg(each) for each in levels]) for key, levels in LEVELS.items()]
    write_shards(home / "shards", {"fold_1": [clips], "fold_2": [[Clip(key="e")]]})
    matrix = np.zeros((7, 7), int)
    for key, (predicted, _) in SAID.items():
        matrix[LABELS[key], predicted] += 1
    sha = manifest_hash(Store(str(home / "shards")))
    facts = {"num_folds": 2, "classes": CLASSES, "manifest_sha256": sha, "epochs": 1, "epoch": 1, **changes}
    found = fake_runs.result(confusion=scores(matrix.tolist()).confusion, **facts)
    save_result(found, Folder(home / "run"))
    data = DataConfig(shards=str(home / "shards"), workers=0, frames=2, size=64)
    (home / "run" / "config.yaml").write_text(to_yaml(run_config(home / "run", data=data)))
    lines = [",".join(["key", "label", "predicted", *CLASSES]), *map(row, SAID)]
    (home / "run" / "results" / "test_predictions.csv").write_text("\n".join(lines) + "\n")
    return found


def grey(picture: bytes) -> float:
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (112, 112)
        return float(np.asarray(image).mean())


def test_the_most_confident_wrong_clips_come_first_with_their_pictures(tmp_path: Path) -> None:
    finished_run(tmp_path)
    found = worst(Folder(tmp_path / "run"), most=10)
    assert (found.clips, found.wrong, [each.key for each in found.mistakes]) == (4, 3, ["c", "a", "d"])
    first = found.mistakes[0]
    assert (first.truth, first.predicted, first.probability) == ("neutral", "happiness", 0.95)
    assert first.of_truth == pytest.approx(0.05 / 6, abs=1e-6)
    for mistake, levels in zip(found.mistakes, ((60, 70), (10, 30, 50), (200, 210, 220)), strict=True):
        assert [grey(picture) for picture in mistake.pictures] == pytest.approx(levels, abs=1.5)
    assert [each.key for each in worst(Folder(tmp_path / "run"), most=1).mistakes] == ["c"]


def test_the_command_writes_a_page_that_holds_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path)
    assert main(["errors", str(tmp_path / "run"), "--most", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 test clips are wrong\nc: happiness 0.95, truth neutral 0.01\na: sadness 0.70, truth" in said
    assert said.endswith(f"\nPage: {tmp_path}/run/report/errors.html\n")
    page = (tmp_path / "run" / "report" / "errors.html").read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [grey(b64decode(each)) for each in pictures] == pytest.approx([60, 70, 10, 30, 50], abs=1.5)
    assert "<b>happiness</b> 95.00 %; truth: <b>neutral</b>" in page and "<script" not in page


def test_folds_are_collected_and_named(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").rename(tmp_path / "whole" / "fold_1")
    found = worst(Folder(tmp_path / "whole"), most=10)
    assert {each.part for each in found.mistakes} == {"fold_1"} and "c, fold 1" in error_page(found)


def test_names_from_a_run_stay_text(tmp_path: Path) -> None:
    finished_run(tmp_path, method="<script>alert(1)</script>")
    assert "<script" not in error_page(worst(Folder(tmp_path / "run"), most=1))


def test_a_run_without_result_or_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a finished run, got none\. Finish the run first"):
        worst(Folder(tmp_path / "none"), most=1)
    finished_run(tmp_path)
    (tmp_path / "run" / "results" / "test_predictions.csv").unlink()
    with pytest.raises(CheckpointError, match=r"expected the predictions of the result, got no such file\. Evaluate"):
        worst(Folder(tmp_path / "run"), most=1)


def test_other_shards_are_refused_and_moved_ones_are_named(tmp_path: Path) -> None:
    finished_run(tmp_path)
    write_shards(tmp_path / "others", {"fold_1": [[Clip(key="z")]], "fold_2": [[Clip(key="e")]]})
    with pytest.raises(CheckpointError, match="expected the shards it was started with"):
        worst(Folder(tmp_path / "run"), most=1, shards=str(tmp_path / "others"))
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert worst(Folder(tmp_path / "run"), most=1, shards=str(tmp_path / "moved")).mistakes[0].key == "c"


def test_predictions_of_other_clips_are_refused(tmp_path: Path) -> None:
    finished_run(tmp_path)
    path = tmp_path / "run" / "results" / "test_predictions.csv"
    path.write_text(path.read_text().replace("\nc,", "\ny,"))
    with pytest.raises(CheckpointError, match=r"expected keys of the test clips, got y\. Evaluate again"):
        worst(Folder(tmp_path / "run"), most=1)
