"""Whether a run is finished, told from its folder alone."""

import json
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from dfer.errors import CheckpointError
from dfer.run.layout import RESULT, evaluations, finished, predictions_name, result_name, result_values
from dfer.storage import Folder

LEASE = "g1-0123abcd"


def made(home: Path, configured: int | None = 50, **result: Any) -> Folder:
    (home / "results").mkdir(parents=True, exist_ok=True)
    (home / RESULT).write_text(json.dumps({"step": 100, "epoch": 50, "selection": "last", **result}))
    if configured is not None:
        (home / "config.yaml").write_text(f"epochs: {configured}\n")
    return Folder(home)


def checkpoint(home: Path, step: int) -> None:
    (home / "lease").mkdir(exist_ok=True)
    lease = {"owner": {"host": "h", "pid": 1}, "started": "", "step": 0}
    (home / "lease" / "000001-0123abcd.json").write_text(json.dumps(lease))
    folder = home / "checkpoints" / f"step_{step:08d}-{LEASE}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("result", "configured", "wanted", "expected"),
    [
        ({"complete": True, "epochs": 50}, 50, None, True),
        ({"complete": False, "epochs": 50}, 50, None, False),
        ({"complete": False, "epochs": 50, "epoch": 50}, 50, 50, False),
        ({"complete": True, "epochs": 50}, 60, None, False),
        ({"complete": True, "epochs": 50}, 50, 60, False),
        ({"complete": True, "epochs": 60}, 50, 60, True),
        ({"complete": True, "epochs": 50}, None, None, True),
        ({"complete": True, "epochs": 0, "step": 0, "epoch": 0}, 50, 50, True),
        ({"complete": "yes", "epochs": 50}, 50, None, False),
    ],
)
def test_a_run_is_finished_when_its_training_had_all_epochs(
    tmp_path: Path, result: dict[str, Any], configured: int | None, wanted: int | None, expected: bool
) -> None:
    assert finished(made(tmp_path, configured, **result), wanted) is expected


@pytest.mark.parametrize(
    ("result", "newest", "wanted", "expected"),
    [
        ({}, None, None, True),
        ({"epoch": 20}, 100, None, False),
        ({"epoch": 0, "step": 1}, 1, None, False),
        ({"epoch": 0, "step": 0}, None, 60, True),
        ({}, 100, 60, False),
        # The best of 50 epochs of two steps; the newest checkpoint tells how far the training went.
        ({"epoch": 20, "step": 40, "selection": "best_on_val"}, 100, None, True),
        ({"epoch": 20, "step": 40, "selection": "best_on_test"}, 60, None, False),
        ({"epoch": 20, "step": 40, "selection": "best_on_test"}, None, None, True),
        ({"epoch": 20, "step": 40, "selection": "best_on_test"}, 100, 60, False),
    ],
)
def test_results_of_older_versions_do_not_say_whether_they_are_complete(
    tmp_path: Path, result: dict[str, Any], newest: int | None, wanted: int | None, expected: bool
) -> None:
    home = made(tmp_path, **result)
    if newest is not None:
        checkpoint(tmp_path, newest)
    assert finished(home, wanted) is expected


def test_no_result_is_not_finished(tmp_path: Path) -> None:
    assert not finished(Folder(tmp_path / "none"))
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    assert not finished(Folder(tmp_path), 3)


@pytest.mark.parametrize(("text", "got"), [("{", "Expecting"), ("[" * 100_000, "recursion"), ("3", "int")])
def test_a_damaged_result_is_neither_finished_nor_not(tmp_path: Path, text: str, got: str) -> None:
    made(tmp_path)
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        finished(Folder(tmp_path))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{RESULT}: expected a JSON object, got ") and got in said
    assert said.endswith("Delete it and evaluate again.")


@pytest.mark.parametrize("text", ["epochs: [", "- 1", "epochs: many", "seed: 1", ""])
def test_a_configuration_that_does_not_tell_its_epochs_decides_nothing(tmp_path: Path, text: str) -> None:
    home = made(tmp_path, None, complete=True, epochs=50)
    (tmp_path / "config.yaml").write_text(text)
    assert finished(home)
    assert result_values(home, RESULT) == {
        "step": 100,
        "epoch": 50,
        "selection": "last",
        "complete": True,
        "epochs": 50,
    }


def test_evaluations_in_between_have_files_of_their_own(tmp_path: Path) -> None:
    names = [result_name(step, complete=False) for step in (3, 123_456_789, 12)]
    assert names[0] == "results/test-step_00000003.json" and result_name(3, complete=True) == RESULT
    assert predictions_name(names[0]) == "results/test-step_00000003_predictions.csv"
    assert predictions_name(RESULT) == "results/test_predictions.csv"
    for name in [*names, RESULT, "results/test-step_3.json", predictions_name(names[0])]:
        Folder(tmp_path).write(name, b"{}")
    assert evaluations(Folder(tmp_path)) == [names[1], names[2], names[0]]
    assert evaluations(Folder(tmp_path / "none")) == []


def test_telling_needs_no_torch() -> None:
    code = "import sys, dfer.run.layout, dfer.run.changes; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
