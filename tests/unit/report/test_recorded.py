"""metrics.jsonl as the curves of a report take it: anything may stand in it."""

import json
from pathlib import Path

import pytest

from dfer.report import recorded
from dfer.report.recorded import Recorded, read_recorded
from dfer.storage import Folder


def read(tmp_path: Path, *lines: object) -> Recorded:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return read_recorded(Folder(tmp_path), "metrics.jsonl")


def test_numbers_by_metric_and_step(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"kind": "train", "step": 1, "loss": 2, "lr": {"a": 0.5}, "note": "x", "flag": True},
        {"kind": "train", "step": 2, "loss": 3.5},
        {"kind": "train", "step": 1, "loss": 1},
        "",
        "{torn",
        [1],
    )
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


def test_a_file_over_a_bound_gives_shorter_curves_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = read(tmp_path, {"step": 1, "x": 1}, *["x"] * 10_002, {"step": 2, "x": 1})
    assert damaged.cut and damaged.points == {"x": {1: 1}} and damaged.damaged == 10_001
    many = read(tmp_path, {"step": 1, **{f"m{n}": 1 for n in range(1001)}}, {"step": 2, "m0": 3})
    assert many.cut and len(many.points) == 1000 and many.points["m0"] == {1: 1, 2: 3}
    line = json.dumps({"step": 1, "x": 1})
    for most, found in ((len(line) * 2 + 2, 2), (len(line) * 2 + 1, 2), (len(line) * 2, 1), (10, 0)):
        monkeypatch.setattr(recorded, "MAX_BYTES", most)
        large = read(tmp_path, *({"step": n, "x": 1} for n in range(1, 9)))
        assert large.cut and not large.damaged and len(large.points.get("x", {})) == found
    monkeypatch.setattr(recorded, "MAX_BYTES", len(line))
    assert read(tmp_path, {"step": 1, "x": 1}) == Recorded(points={"x": {1: 1}})


def test_evaluations_of_different_splits_are_different_curves(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"kind": "eval", "step": 1, "war": 0.5}]
    records += [{**records[0], "split": split, "war": war} for split, war in (("test", 0.6), ("validation", 0.7))]
    found = read(tmp_path, *records, {**records[0], "split": "<b>", "uar": 0.8}, {**records[0], "split": 3, "f1": 0.9})
    assert found.points == {
        "eval/war": {1: 0.5},
        "eval/test/war": {1: 0.6},
        "eval/validation/war": {1: 0.7},
        "eval/uar": {1: 0.8},
        "eval/split": {1: 3},
        "eval/f1": {1: 0.9},
    }
