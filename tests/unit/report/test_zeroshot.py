"""The table of the zero-shot suite: means over folds by hand, and published numbers beside the released heads alone."""

from dataclasses import replace
from typing import Any

import pytest

from dfer.config import ConfigProblem
from dfer.emotions import BASIC7
from dfer.models import head_file
from dfer.report import exp_clip
from dfer.report.zeroshot import Answer, ModelFacts, SetResult, Together, suite_of
from dfer.report.zeroshot_page import page
from dfer.report.zeroshot_tables import markdown, rows, text

KINDS = ("class_names", "face_with_expression")


def model(name: str, **changes: Any) -> ModelFacts:
    facts = {"arch": "ViT-B-32-quickgelu", "weights": "openai", "normalisation": "none", "tower": "B32"}
    return ModelFacts(**{"name": name, **facts, "temperature": 0.01, "size": 224, "features": "0" * 16, **changes})


MODELS = (
    model("clip"),
    model("exp_clip", head="ExpCLIP_B32_model.pth", head_sha256="ab" * 32, released="B32"),
    model("mine", head="mine.pth", head_sha256="cd" * 32),
)


def matrix(*right: int) -> tuple[tuple[int, ...], ...]:
    """Ten clips a class, of which so many are right and the others are taken for the next class."""
    rows = [[0] * 7 for _ in range(7)]
    for k, count in enumerate(right):
        rows[k][k] += count
        rows[k][(k + 1) % 7] += 10 - count
    return tuple(map(tuple, rows))


ONE, TWO = matrix(10, 8, 6, 4, 2, 0, 5), matrix(0, 0, 10, 10, 0, 0, 0)


def result(name: str = "raf_db", **changes: Any) -> SetResult:
    answers = [
        Answer(model=each.name, kind=kind, confusion={"1": ONE if kind == KINDS[0] else TWO})
        for each in MODELS
        for kind in KINDS
    ]
    # Both kinds right, one of them, none: of each class.
    right = tuple((10 - max(a, b), abs(a - b), min(a, b)) for a, b in zip(diagonal(ONE), diagonal(TWO), strict=True))
    values: dict[str, Any] = {
        "name": name,
        "data": name,
        "dataset": name,
        "source": "shards",
        "classes": BASIC7,
        "protocol": "published",
        "folds": {"1": 70},
        "clips": 70,
        "left_out": 0,
        "frames": 1,
        "short_clips": "repeat_first",
        "short": 0,
        "precision": "fp32",
        "sha256": "0" * 64,
        "asked": "1" * 64,
        "finished": "2026-11-27T00:00:00+00:00",
        "seconds": {},
        "kinds": KINDS,
        "models": MODELS,
        "answers": tuple(answers),
        "together": tuple(Together(model=each.name, right={"1": right}) for each in MODELS),
    }
    return SetResult(**{**values, **changes})


def diagonal(counts: tuple[tuple[int, ...], ...]) -> list[int]:
    return [row[k] for k, row in enumerate(counts)]


def suite(*results: SetResult) -> Any:
    return suite_of(results, absent={"afew": "there is no data/afew"}, waiting=["mafw"])


def published(found: SetResult) -> dict[str, str]:
    (table,) = suite(found).sets
    return {line.label: line.published.text for line in table.lines if line.published}


def test_scores_are_means_over_folds_and_the_mean_of_kinds_is_over_clips() -> None:
    halves = {"1": ONE, "2": TWO}
    answers = (Answer(model="clip", kind=KINDS[0], confusion=halves),)
    both = {fold: tuple((10 - k, k, 0) for k in diagonal(counts)) for fold, counts in halves.items()}
    found = result(
        models=MODELS[:1],
        folds={"1": 70, "2": 70},
        clips=140,
        answers=answers,
        together=(Together(model="clip", right=both),),
    )
    line, mean = suite(found).sets[0].lines
    assert (line.mean.uar, line.mean.war) == (pytest.approx((0.5 + 2 / 7) / 2), pytest.approx((35 / 70 + 20 / 70) / 2))
    assert line.intervals.uar.low < line.mean.uar < line.intervals.uar.high
    assert line.pooled is not None and line.pooled.num_clips == 140
    # One of two kinds was right where the line above counts the clip as right.
    assert mean.mean.war == pytest.approx(line.mean.war / 2) and mean.kind == "mean of 2 kinds"


def test_released_rows_stand_beside_the_same_head_and_kind_alone() -> None:
    assert published(result()) == {
        "exp_clip, class_names": "36.00 / 44.95",
        "exp_clip, face_with_expression": "38.68 / 45.05",
        "exp_clip, mean of 2 kinds": "37.34 / 45.00",
    }
    (table,) = suite(result()).sets
    assert {name: row.text for name, row in table.readme.items()} == {
        "clip": "34.97 / 30.05",
        "exp_clip": "39.56 / 42.14",
    }
    listed = rows(table)
    assert ["exp_clip, published, of no single prompt kind", "", "", "39.56 / 42.14"] in listed
    assert not [row for row in listed if row[0].startswith("mine") and row[-1] != "–"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"generated": "seed 3"}, "the faces are generated"),
        ({"dataset": "fer2013"}, "the shards are of fer2013"),
        ({"frames": 8, "short": 3}, "8 frames a clip, not 16"),
        (
            {"frames": 16, "short": 3, "short_clips": "repeat_last"},
            "short_clips=repeat_last, the release repeats the f",
        ),
        ({"protocol": "subjects"}, "folds 1 of the protocol `subjects`"),
        (
            {"classes": (*(name for name in BASIC7 if name != "neutral"), "contempt")},
            "7 classes with contempt and without neutral, which are not the 7 of the release",
        ),
    ],
)
def test_what_is_not_the_release_s_takes_its_numbers_away_and_says_so(changes: dict[str, Any], why: str) -> None:
    found = result(**changes)
    assert published(found) == {} and suite(found).sets[0].readme == {}
    assert f"Published rows are left out: {why}" in text(suite(found))
    unknown = result("my_set", **changes)
    assert published(unknown) == {} and "left out" not in text(suite(unknown))


def test_folds_and_classes_decide_too() -> None:
    assert published(result("dfew")) == {}
    halves = {"1": ONE, "2": TWO, "3": ONE, "4": TWO, "5": ONE}
    five = result(
        "dfew",
        folds=dict.fromkeys(halves, 70),
        frames=16,
        short=3,
        kinds=KINDS[:1],
        answers=tuple(Answer(model=each.name, kind=KINDS[0], confusion=halves) for each in MODELS),
        together=(),
    )
    assert published(five) == {"exp_clip, class_names": "20.91 / 27.37"}
    seven = suite(result("affectnet8", dataset="affectnet"))
    assert published(result("affectnet8", dataset="affectnet")) == {}
    assert "7 classes without contempt, which are not the 8 of the release" in text(seven)
    contempt = ("contempt", *(name for name in BASIC7 if name != "neutral"))
    assert published(result("affectnet7", dataset="affectnet", classes=contempt)) == {}
    other_order = tuple("Happy" if name == "happiness" else name for name in reversed(BASIC7))
    assert published(result("affectnet7", dataset="affectnet", classes=other_order)) != {}
    assert published(result("affectnet7", dataset="affectnet"))["exp_clip, class_names"] == "29.26 / 29.27"
    assert published(result("raf_db", dataset="RAFDB_Face", source="pictures", protocol="pictures"))


def test_what_the_release_does_not_say_of_a_set_stands_below_its_numbers() -> None:
    said = {
        "affectnet7": "its list of test pictures is not released",
        "affectnet8": "its list of test pictures is not released",
        "ferplus": "its rule from votes to labels is not known",
    }
    for name in exp_clip.SETS:
        row, table = exp_clip.log_row("B32", "class_names", name), exp_clip.readme_row("CLIP", "B32", name)
        assert row is not None and table is not None
        assert row.note == said.get(name, "")
        assert table.note == "; ".join(filter(None, ("of no single prompt kind", said.get(name))))
    told = text(suite(result("affectnet7", dataset="affectnet")))
    assert "ExpCLIP_B32.txt (its list of test pictures is not released)." in told


def test_a_kind_of_the_user_s_has_no_published_row_and_no_published_mean() -> None:
    own = ("class_names", "own.yaml")
    answers = tuple(replace(each, kind="own.yaml") if each.kind != own[0] else each for each in result().answers)
    assert published(result(kinds=own, answers=answers)) == {"exp_clip, class_names": "36.00 / 44.95"}


@pytest.mark.slow("draws a picture of scores and six confusion matrices")
def test_every_form_names_kinds_sources_and_what_is_absent() -> None:
    odd = replace(MODELS[0], weights="<script>alert(1)</script>")
    found = suite(result(models=(odd, *MODELS[1:])))
    drawn = page(found)
    for made in (text(found), markdown(found).replace("\\", ""), drawn):
        for said in (
            "exp_clip, face_with_expression",
            "mean of 2 kinds",
            "afew: absent, there is no data/afew.",
            "mafw: there, but not evaluated with this configuration, these clips and weights yet.",
            "log of the release, github zengqunzhao/Exp-CLIP @23ace53, ExpCLIP_B32.txt",
        ):
            assert said in made
    assert "mine.pth, sha256 cdcdcdcdcdcd" in drawn and "the released B32" in drawn and "<script>" not in drawn
    _, _, models = drawn.partition("<h2>Models</h2>")
    assert models.startswith('<div class="scroll"><table class="words">'), "long paths do not widen the page"
    assert "table.words td { white-space: normal; overflow-wrap: anywhere;" in drawn


def test_counts_that_do_not_fit_are_refused() -> None:
    for changes in ({"folds": {"1": 71}}, {"folds": {"2": 70}}, {"classes": BASIC7[:6]}, {"kinds": KINDS[:1]}):
        with pytest.raises(ConfigProblem, match=r"answers: expected counts of the clips of every fold, got others"):
            result(**changes)


def test_the_logs_are_those_of_three_heads_five_kinds_and_eight_sets() -> None:
    found = [
        exp_clip.log_row(h, kind, name) for h in head_file.ARCHS for kind in exp_clip.KINDS for name in exp_clip.SETS
    ]
    assert len(found) == 120 and all(row is not None and row.uar is not None for row in found)
    assert exp_clip.log_row("B32", "own.yaml", "dfew") is exp_clip.log_row("", "class_names", "dfew") is None
    assert exp_clip.log_mean("B32", (), "dfew") is exp_clip.readme_row("CLIP", "", "dfew") is None
    # Typed from the release's files: L/14, kind 5; B/16, kind 2.
    ends = [exp_clip.log_row("L14", "ensemble_10", "afew"), exp_clip.log_row("B16", "class_names_with_context", "mafw")]
    assert [row.text for row in ends if row] == ["39.47 / 40.42", "21.42 / 26.14"]
