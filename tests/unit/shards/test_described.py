"""Faces with sentences about them: what the words say is what is drawn, and the tables of a user's own tree."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer.errors import DataError
from shards.sources import described
from shards.synthetic import synth
from shards.synthetic.action_units import ACTION_UNITS, COLUMN
from shards.synthetic.describe import RELAXED, UNITS, active_units, appearance, caption, description
from shards.synthetic.identity import draw_identity, draw_scene
from tests.unit.shards import stillkit

WORDINGS = {words: name for name, several in UNITS.items() for words in several}


def said(text: str) -> set[str]:
    """The units that a text names, longest wordings first, so that `on one side` is not read without its end."""
    rest, found = text.lower(), set()
    for words in sorted(WORDINGS, key=len, reverse=True):
        if words in rest:
            found.add(WORDINGS[words])
            rest = rest.replace(words, "")
    return found


@given(st.integers(0, 2**31), st.integers(0, len(ACTION_UNITS)))
def test_a_description_names_the_units_that_are_drawn_and_no_other(seed: int, active: int) -> None:
    rng = np.random.default_rng(seed)
    units = rng.uniform(0.0, 0.19, len(ACTION_UNITS))
    strong = rng.permutation(len(ACTION_UNITS))[:active]
    units[strong] = rng.uniform(0.2, 1.0, active)
    drawn = {ACTION_UNITS[column] for column in strong.tolist()}
    both = {side for side in ("12", "14") if {f"{side}L", f"{side}R"} <= drawn}
    one = {f"{side} one" for side in ("12", "14") if len({f"{side}L", f"{side}R"} & drawn) == 1}
    expected = {name for name in drawn if name[-1] not in "LR"} | both | one
    text = description(units, rng=rng)
    assert set(active_units(units)) == said(text) == expected
    assert text.endswith(".") and (text[0].lower() + text[1:-1] in RELAXED) == (not expected)
    short = caption(units, who=draw_identity(rng), scene=draw_scene(32, rng=rng), rng=rng)
    assert said(short) <= expected and len(said(short)) in ((0,) if not expected else (1, 2))


def test_the_words_of_a_unit_are_its_own_and_tell_how_strong_it_is() -> None:
    assert len(WORDINGS) == sum(map(len, UNITS.values()))
    assert {name.removesuffix(" one") for name in UNITS} == {name.rstrip("LR") for name in ACTION_UNITS}
    texts = {}
    for value in (0.3, 0.6, 0.9):
        units = np.zeros(len(ACTION_UNITS))
        units[COLUMN["26"]] = value
        texts[value] = {description(units, rng=np.random.default_rng(seed)) for seed in range(40)}
    assert all("slightly" in text for text in texts[0.3])
    assert not any("slightly" in text or "strongly" in text for text in texts[0.6])
    assert {"strongly" in text for text in texts[0.9]} == {True, False}


def test_looks_are_those_of_the_person_and_the_scene() -> None:
    people = [draw_identity(np.random.default_rng(seed)) for seed in range(60)]
    scene = draw_scene(32, rng=np.random.default_rng(1))
    for who in people:
        words = appearance(who, scene)
        assert ("a bald head" in words) == (who.style == "bald") and ("glasses" in words) == who.glasses
        assert who.style == "bald" or words[0].startswith(f"{who.style} ")
    light, dark = max(people, key=lambda who: sum(who.skin)), min(people, key=lambda who: sum(who.skin))
    assert "very light skin" in appearance(light, scene) and "very dark skin" in appearance(dark, scene)


def test_the_generated_groups_share_no_person_and_the_unlabelled_one_has_no_class(tmp_path: Path) -> None:
    synth("described", tmp_path, clips=90, seed=1, size=32, progress=False)
    found = described.read(tmp_path)
    groups = {
        part: [clip for clip in found.clips if clip.partition == part] for part in ("train", "unlabelled", "test")
    }
    people = {part: {clip.subject for clip in clips} for part, clips in groups.items()}
    assert all(
        len(people[part]) > 1 and not people[part] & people[other] for part, other in itertools.combinations(people, 2)
    )
    assert all(clip.text and clip.text.endswith(".") for clip in found.clips)
    assert all((clip.label is None) == (clip.partition == "unlabelled") for clip in found.clips)
    assert all("with" in str(clip.text) for clip in groups["train"])
    (fold,) = found.protocols["published"].folds
    assert (fold.train.partitions, fold.test.partitions) == (("train",), ("test",))
    with (tmp_path / "unlabelled" / "descriptions.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [
            f"{number:05d}.jpg" for number in range(len(groups["unlabelled"]))
        ]


def tree(root: Path, labels: str | None = None, texts: str | None = None) -> Path:
    stillkit.fill(root / "mine", "a.jpg", "b.png")
    stillkit.fill(root / "train", "a.jpg")
    for path, text in ((root / "labels.csv", labels), (root / "mine" / "descriptions.csv", texts)):
        if text is not None:
            path.write_text(text)
    return root


def test_a_users_tree_may_lack_tables_classes_persons_and_texts(tmp_path: Path) -> None:
    bare = described.read(tree(tmp_path / "bare"))
    assert [(clip.key, clip.label, clip.subject, clip.text) for clip in bare.clips] == [
        (key, None, None, None) for key in ("mine/a", "mine/b", "train/a")
    ]
    assert not bare.protocols and not bare.emotions.names and bare.media == "png"
    labels = "file,class,subject\nmine/b.png,Happy,\ntrain/a.jpg,bored,anna\n"
    found = described.read(tree(tmp_path / "full", labels, 'file,text\na.jpg,"A face, at rest."\n'))
    assert found.emotions.names == ("happiness", "bored")
    assert [(clip.label, clip.subject, clip.text) for clip in found.clips] == [
        (None, None, "A face, at rest."),
        (0, None, None),
        (1, "anna", None),
    ]


@pytest.mark.parametrize(
    ("labels", "texts", "said"),
    [
        (
            "name,class\n",
            None,
            r"labels.csv: expected the columns file,class,subject, got name,class. Correct the file",
        ),
        ("", None, r"labels.csv: expected the columns file,class,subject, got nothing"),
        (
            "file,class,subject\nmine/c.jpg,fear,\n",
            None,
            r"labels.csv, line 2: expected each picture once, got 'mine/c",
        ),
        (
            None,
            "file,text\na.jpg,x\na.jpg,y\n",
            r"descriptions.csv, line 3: expected each picture once, got 'a.jpg' twice",
        ),
        (
            None,
            "file,text\na.jpg,one, two\n",
            r"line 2: expected 2 cells, got 3. Put a text with commas into quotation",
        ),
    ],
)
def test_wrong_tables_are_told_with_their_line(
    labels: str | None, texts: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        described.read(tree(tmp_path, labels, texts))


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected folders of pictures, got none with any. Give the folder that holds"):
        described.read(tmp_path)
