"""metrics.jsonl as the curves of a report take it: anything may stand in it."""

import json
from pathlib import Path

import pytest

from dfer.errors import CheckpointError, StorageError
from dfer.evaluation import recorded
from dfer.evaluation.recorded import Recorded, read_recorded
from dfer.storage import Folder


def read(tmp_path: Path, *lines: object) -> Recorded:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return read_recorded(Folder(tmp_path), "metrics.jsonl")


def test_numbers_by_metric_and_step(tmp_path: Path) -> None:
    found = read(
        tmp_path, {"kind": "train", "step": 1, "loss": 2, "lr": {"a": 0.5}, "note": "x", "flag": True},
        {"kind": "train", "step": 2, "loss": 3.5}, {"kind": "train", "step": 1, "loss": 1}, "", "{torn", [1],
    )  # fmt: skip
    assert found == Recorded(points={"train/loss": {1: 1, 2: 3.5}, "train/lr/a": {1: 0.5}}, damaged=1)


def test_no_file_is_nothing(tmp_path: Path) -> None:
    assert read_recorded(Folder(tmp_path), "metrics.jsonl") == Recorded()


def test_numbers_that_no_axis_shows_are_passed_over(tmp_path: Path) -> None:
    odd = [10**400, 1e31, float("nan"), float("inf"), None, "1", {"a": {"b": {}}}]
    assert read(tmp_path, *({"step": 1, "x": value} for value in odd), *({"step": value, "x": 1} for value in odd)) == (
        Recorded()
    )


def test_more_than_a_report_takes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MAX_NUMBERS", 5)
    found = read(tmp_path, *({"step": n, "x": 1} for n in range(20)))
    assert found.cut and len(found.points["x"]) == 6
    monkeypatch.setattr(recorded, "MAX_LINES", 3)
    assert len(read(tmp_path, *({"step": n, "x": 1} for n in range(20))).points["x"]) == 3


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: expected a record a line, got more than 10,000"):
        read(tmp_path, *["x"] * 10_001)
    with pytest.raises(CheckpointError, match="got more than 1,000 metrics"):
        read(tmp_path, {"step": 1, **{f"m{n}": 1 for n in range(1001)}})
    monkeypatch.setattr(recorded, "MAX_BYTES", 10)
    with pytest.raises(StorageError, match="expected at most 10 bytes"):
        read(tmp_path, {"step": 1, "x": 1})
