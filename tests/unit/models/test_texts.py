"""What is said of each class: templates, the packaged descriptors, a file of the user's."""

import hashlib
from pathlib import Path

import pytest

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, label_set
from dfer.models.texts import KINDS, class_prompts, class_texts

OWN = Emotions(names=("sleepy", "happiness"))


# SHA-256 of the lists in models/Text.py of the released Exp-CLIP code (github zengqunzhao/Exp-CLIP @23ace53), in the
# order of the classes and joined by line ends.
ENSEMBLES = {
    "ensemble_5": (5, "8f366c66728d72ec3e91d560e903491b0dcb274f622dd949980c64744043e6f5"),
    "ensemble_10": (10, "08a36e424d5df68e5b17148711cdfbec16939bce20fbbe3b676440f33b731723"),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clivp_fer"])
def test_every_known_emotion_has_texts_of_every_kind(kind: str) -> None:
    prompts = class_prompts(label_set("mafw11"), kind)
    texts = [text for found in prompts for text in found]
    assert [len(found) for found in prompts] == [ENSEMBLES.get(kind, (1, ""))[0]] * 11
    assert len(set(texts)) == len(texts)
    assert {text.endswith(".") for text in texts} == {kind != "action_units"}  # DK-CLIP's are bare
    assert class_prompts(label_set("basic7"), kind) == prompts[:7]


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_every_string_of_the_ensembles_is_the_release_s(kind: str) -> None:
    count, sha256 = ENSEMBLES[kind]
    texts = [text for found in class_prompts(label_set("mafw11"), kind) for text in found]
    assert len(texts) == 11 * count and hashlib.sha256("\n".join(texts).encode()).hexdigest() == sha256


def test_a_method_that_takes_one_text_a_class_refuses_several() -> None:
    expected = r"text=ensemble_5: expected one text a class, got 5 of happiness\. Set `text` to a kind with one"
    with pytest.raises(ConfigProblem, match=expected):
        class_texts(label_set("basic7"), "ensemble_5")


def test_a_file_may_give_several_texts_a_class(tmp_path: Path) -> None:
    path = tmp_path / "texts.yaml"
    path.write_text("happy:\n  - a broad smile.\n  - raised cheeks.\nsleepy: drooping eyelids.\n")
    assert class_prompts(OWN, str(path)) == [["drooping eyelids."], ["a broad smile.", "raised cheeks."]]


def test_templates_fit_any_class() -> None:
    assert class_texts(OWN, "photo") == ["a photo of sleepy.", "a photo of happiness."]


def test_a_file_gives_texts_by_name_in_class_order(tmp_path: Path) -> None:
    path = tmp_path / "texts.yaml"
    path.write_text("Happy: a broad smile.\nsleepy: drooping eyelids.\nangry: a frown.\n")
    assert class_texts(OWN, str(path)) == ["drooping eyelids.", "a broad smile."]


def test_a_class_without_a_text_is_named(tmp_path: Path) -> None:
    expected = r"text=class_descriptor: expected a text for every class, got none for sleepy\. Give `text` the path of"
    with pytest.raises(ConfigProblem, match=expected):
        class_texts(OWN, "class_descriptor")
    path = tmp_path / "texts.yml"
    path.write_text("sleepy: drooping eyelids.\n")
    with pytest.raises(
        ConfigProblem, match=r"texts\.yml: .* got none for happiness\. Add a line `class: text` for each"
    ):
        class_texts(OWN, str(path))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"- a\n", "expected lines `class: text`, got list"),
        (b"sleepy: 7\nhappiness: x\n", "got a value that is no text"),
        (b"sleepy: '  '\n", "got a value that is no text"),
        (b"sleepy: []\n", "got a value that is no text"),
        (b"sleepy: [a, 7]\n", "got a value that is no text"),
        (b"sleepy: [\n", "got not valid YAML"),
        (b"happy: a\nhappiness: b\n", "got happiness twice"),
        (b"a: " + b"x" * 70_000, "got not valid YAML"),
    ],
)
def test_a_file_that_holds_something_else(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "texts.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigProblem) as caught:
        class_texts(OWN, str(path))
    assert str(caught.value).startswith(str(path)) and says in str(caught.value)


def test_an_unknown_kind_or_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"text: expected one of class_names, .* Did you mean 'photo'"):
        class_texts(OWN, "photos")
    with pytest.raises(ConfigProblem, match=r"none\.yaml: expected a YAML file of texts, got No such file .* Correct"):
        class_texts(OWN, str(tmp_path / "none.yaml"))
