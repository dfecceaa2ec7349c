"""Pieces of independent parts: their division, what all parts agree on, what is told of their progress."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError
from dfer.jobs import pieces
from dfer.jobs.pieces import Grid, Plan, Progress
from dfer.storage import Folder
from launch.status import status

PLAN = Plan(depends={"model": {"saved_model": "a" * 64}, "source": "x", "batch": 4}, clips=9, pieces=3, keys_sha256="0")


@given(st.integers(0, 20_000), st.integers(1, 600))
def test_pieces_hold_every_clip_once_and_whole_batches(clips: int, batch: int) -> None:
    grid = Grid.of(clips, batch=batch)
    assert [at for piece in grid for at in piece] == list(range(clips)) and len(list(grid)) == len(grid)
    assert 1 <= grid.batch <= batch and all(len(piece) % grid.batch == 0 for piece in list(grid)[:-1])
    assert grid.rows < pieces.MAX_ROWS + batch and (len(grid) <= pieces.MIN_PIECES or clips > pieces.MIN_PIECES)


@given(st.integers(0, 500), st.integers(1, 40))
def test_every_piece_belongs_to_one_part(count: int, workers: int) -> None:
    shares = [pieces.share(count, part, of=workers) for part in pieces.worker_parts("run/", workers)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_are_named_by_number() -> None:
    assert [(part.name, part.run) for part in pieces.worker_parts("s3://b/run/", 2)] == [
        ("worker_1", "s3://b/run/worker_1"),
        ("worker_2", "s3://b/run/worker_2"),
    ]
    for workers in (0, 10_001):
        with pytest.raises(ConfigProblem) as caught:
            pieces.check_workers(workers)
        assert str(caught.value) == f"workers: expected 1 to 10,000 parts, got {workers}. Correct it."


def test_a_part_that_finds_something_else_refuses(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    pieces.agree(home, PLAN)
    pieces.agree(home, replace(PLAN))
    other = replace(PLAN, depends={**PLAN.depends, "source": "y", "model": {"saved_model": "b" * 64}}, clips=10)
    with pytest.raises(CheckpointError) as caught:
        pieces.agree(home, other)
    old, new = (f'{{"saved_model": "{letter * 64}"}}' for letter in "ab")
    assert str(caught.value) == (
        f"{tmp_path}: expected clips 9, model {old}, source x, as it was begun with, got clips 10, model {new}, "
        "source y. Put it back as it was, or start anew with run=FOLDER. Without plan.json the run goes on with what "
        "there is now and makes those pieces again that depend on the change."
    )
    assert pieces.read_plan(home) == PLAN
    pieces.forget(home, pieces.worker_parts(str(tmp_path), 1))
    pieces.agree(home, other)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_a_damaged_plan_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"plan\.json: expected a file of this job, got .*Remove the file and give"
    ):
        pieces.read_plan(Folder(str(tmp_path)))


def test_a_part_is_done_under_its_plan_and_division_alone(tmp_path: Path) -> None:
    first, second = parts = pieces.worker_parts(str(tmp_path), 2)
    pieces.mark_done(first, PLAN, of=2, pieces=["a"])
    assert pieces.mark_of(first, PLAN, of=2) == {"plan": PLAN.id, "of": 2, "pieces": ["a"]}
    for plan, of in ((replace(PLAN, clips=8), 2), (PLAN, 3), (None, 2)):
        assert pieces.mark_of(first, plan, of=of) is None
    with pytest.raises(CheckpointError) as caught:
        pieces.marks(Folder(str(tmp_path)), parts, PLAN)
    assert str(caught.value) == (
        f"{tmp_path}: expected the pieces of every part, got none of worker_2. The same command makes what is missing."
    )
    pieces.mark_done(second, PLAN, of=2)
    assert len(pieces.marks(Folder(str(tmp_path)), parts, PLAN)) == 2
    pieces.forget(Folder(str(tmp_path)), parts)
    assert pieces.mark_of(first, PLAN, of=2) is None


def test_progress_is_told_and_shown_by_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(pieces.time, "monotonic", lambda: now)
    part = pieces.worker_parts(str(tmp_path), 3)[1]
    progress = Progress(part, what="predict", total=1_200, standing=200)
    now = 104.0
    progress.add(300)
    assert (_row(tmp_path)["step"], _row(tmp_path)["state"]) == (200, "begun")
    now = 110.0
    progress.add(200)
    row = _row(tmp_path)
    assert (row["step"], row["clips_per_s"], row["eta_s"], row["state"]) == (700, 50.0, None, "begun")
    now = 120.0
    progress.add(500)
    progress.end()
    assert (_row(tmp_path)["step"], _row(tmp_path)["state"]) == (1_200, "finished")
    assert capsys.readouterr().err.splitlines() == [
        "predict: worker_2: 1,200 clips, of which 200 stand",
        "predict: worker_2: 700 of 1,200 clips, 50.0 clips/s, 10 s left",
        "predict: worker_2: 1,200 of 1,200 clips, 50.0 clips/s, 0 s left",
        "predict: worker_2: 1,200 clips, 20.0 s, 50.0 clips/s",
    ]
    (tmp_path / "worker_2" / "progress.json").write_text("[")
    assert _row(tmp_path)["state"] == "begun"


def _row(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(vars(status(str(run))[0])))
    return found
