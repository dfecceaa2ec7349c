"""Runs of generated faces through `dfer evaluate`, `dfer compare` and `dfer errors`; their pages in a browser."""

from pathlib import Path

import pytest

from dfer.jobs.config import RunConfig
from dfer.report.compare import compare
from dfer.report.compare_page import compare_page
from dfer.storage import Folder
from tests import fake_runs
from tests.integration.commands import Capture, copied, here, make_shards, refused, result
from tests.integration.test_report_page import CHROMIUM, measured

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(crossval: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of the cross-validation, which tests may add to."""
    home = tmp_path_factory.mktemp("compare") / "run"
    for fold in ("fold_1", "fold_2"):
        copied(crossval[0] / fold, home / fold)
    return home


def test_shuffled_frames_other_shards_and_the_table_of_both(
    capsys: Capture, run: Path, dfew: Path, tmp_path: Path
) -> None:
    other = make_shards(tmp_path / "mafw", "mafw", clips=55)
    own = result(run / "fold_1")
    done = here(capsys, "evaluate", run / "fold_1", "--shuffle-frames")
    assert done.returncode == 0 and ", frames shuffled (last)" in done.stdout
    assert done.stderr.endswith(f"in {run}/fold_1/results/other-shuffled.json\n")
    done = here(capsys, "evaluate", run / "fold_1", f"data.shards={other / 'shards'}")
    assert done.returncode == 0 and "on generated faces in mafw's layout (last)" in done.stdout
    assert result(run / "fold_1") == own
    refused(here(capsys, "evaluate", run / "fold_1", "fold=2"), 5, "1 changed keys (fold was 1, now 2)")

    page, table = tmp_path / "page", tmp_path / "table.md"
    done = here(capsys, "compare", run, "--set", "dfew", "--markdown", table, "--html", page)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, table.read_text(), (page / "index.html").read_text()):
        assert "run, frames shuffled" in text and "mafw" in text
        assert "dfer_clip_depth2" in text and "pending" in text and "58.87" in text
    assert "Trained on (rows) x tested on" in done.stdout
    report = here(capsys, "report", run).stdout
    assert "frames shuffled" in report and "on generated faces in mafw's layout" in report
    assert "1 of 2 results" in report and "2 of 5 folds" in report


def test_a_methods_other_name_and_a_set_without_rows_are_refused(capsys: Capture, run: Path) -> None:
    refused(here(capsys, "compare", "--set", "dfwe"), 2, "--set: expected one of afew, ", "got dfwe. Correct it.")
    refused(here(capsys, "compare", "--rows", "methods/dfer_clp", "sets/dfew"), 2, "Did you mean 'methods/dfer_clip'")
    refused(here(capsys, "compare", "--rows", "methods/dfer_clip"), 2, "at least one of each, got no set. Add methods/")
    rows = ("methods/dfer_clip", "methods/linear_probe", "sets/dfew", "sets/mafw")
    done = here(capsys, "compare", run, "--rows", *rows)
    assert done.returncode == 0 and done.stdout.count("pending") == 8 and "39.89" in done.stdout


def test_the_errors_of_all_folds_are_on_one_page(capsys: Capture, run: Path) -> None:
    done = here(capsys, "errors", run, "--most", "5")
    wrong = sum(sum(map(sum, result(run / fold)["confusion"])) for fold in ("fold_1", "fold_2"))
    right = sum(result(run / fold)["confusion"][k][k] for fold in ("fold_1", "fold_2") for k in range(7))
    assert done.stdout.startswith(f"{wrong - right} of {wrong} test clips are wrong\n")
    page = (run / "report" / "errors.html").read_text()
    assert page.count("<figure>") == min(5, wrong - right) and page.count("data:image/jpeg") == 3 * page.count(
        "<figure>"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it (apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 420])
def test_the_page_fits_its_window_and_every_picture_holds_its_text(tmp_path: Path, width: int) -> None:
    for name in ("dfer_clip", "a_method_with_a_very_long_name_indeed"):
        home = fake_runs.write_crossval(tmp_path / name, curves=False)
        for fold in range(1, 6):
            fake_runs.write_predictions(home / f"fold_{fold}", fake_runs.result(fold=fold))
    names = ("dfer_clip", "a_method_with_a_very_long_name_indeed")
    page = tmp_path / "page.html"
    page.write_text(compare_page(compare([Folder(tmp_path / name) for name in names], RunConfig)))
    needed, pictures, spilled, narrowest = measured(tmp_path, page, width)
    assert needed <= width and narrowest >= 300
    assert (pictures, spilled) == (3, 0), "scores, reliability, recalls"
