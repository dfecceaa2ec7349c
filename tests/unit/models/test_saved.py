"""Saved models: written whole or not at all, opened with checks, and refused where something is missing or changed."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dfer.config import ConfigProblem
from dfer.emotions import BASIC7, label_set
from dfer.errors import CheckpointError, StorageError, UsageError
from dfer.models.build import build
from dfer.models.card import card
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.saved import CARD, CONFIG, WEIGHTS, Origin, SavedConfig, SavedModel, Score, open_saved
from dfer.models.saving import prepared, save
from dfer.models.towers import clip_settings
from dfer.recognition import Recognizer
from dfer.storage import Folder
from tests.unit.data.httpkit import site
from tests.unit.models.tiny import batch, tiny

ORIGIN = Origin(
    made_by="export",
    source="dfew/fold_1",
    source_sha256="ab" * 32,
    dataset="dfew",
    protocol="published",
    fold=1,
    manifest_sha256="cd" * 32,
    selection="best_on_test",
    step=7,
    epoch=3,
)


def config(model: DferClipConfig, **changes: Any) -> SavedConfig:
    values = {
        "model": prepared(model)[0],
        "classes": BASIC7,
        "normalisation": "none",
        "data": {"frames": 2, "size": 64},
        "recipe": {"epochs": 3},
        "sha256": "",
        "bytes": 0,
        "origin": ORIGIN,
        "score": Score(war=0.5123, uar=0.25, clips=40),
    }
    return SavedConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def model() -> Recognizer:
    return build(tiny(arch="tiny-conv-64"), label_set("basic7"), num_frames=2, seed=1)


def written(out: Any, model: Recognizer, **changes: Any) -> SavedConfig:
    own = prepared(tiny(arch="tiny-conv-64"))[1]
    found, new = save(Folder(out), config(tiny(arch="tiny-conv-64"), **changes), model.state_dict(), card=card, own=own)
    assert new
    return found


def opened(out: Any) -> SavedModel:
    found = open_saved(str(out))
    assert found is not None
    return found


@pytest.mark.parametrize("place", ["disk", "memory://saved/model"])
def test_it_answers_as_the_model_that_was_saved(tmp_path: Path, place: str, model: Recognizer) -> None:
    out = tmp_path / "models" / "a" if place == "disk" else place
    found = written(out, model)
    again = opened(out)
    assert again.config == found and found.sha256 and found.bytes
    one, other = (each.eval()(batch(2, 2)).logits for each in (model, again.recognizer()))
    assert torch.equal(one, other)
    assert Folder(out).names() == sorted([CARD, CONFIG, WEIGHTS])
    if place == "disk":
        assert [path.name for path in (tmp_path / "models").iterdir()] == ["a"], "nothing is left beside it"
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "models" / "a").iterdir()} == {0o644}


def test_it_is_read_from_a_web_server(tmp_path: Path, model: Recognizer) -> None:
    written(tmp_path / "a", model)
    with site(tmp_path) as server:
        found = opened(f"{server.url}/a")
        assert torch.equal(found.weights()["temporal.token"], model.state_dict()["temporal.token"])
        assert open_saved(f"{server.url}/b") is None


def test_the_card_says_where_it_comes_from(tmp_path: Path, model: Recognizer) -> None:
    found = written(tmp_path / "a", model, texts=tuple(f"a face, {name}." for name in BASIC7))
    text = (tmp_path / "a" / CARD).read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["library_name"], front["license"]) == ("dfer", "other")
    result = front["model-index"][0]["results"][0]
    assert [metric["value"] for metric in result["metrics"]] == [0.5123, 0.25]
    assert result["dataset"] == {"type": "dfew", "name": "DFEW", "split": "fold 1 of published"}
    for said in (
        "WAR 51.23 % (interval not computed), UAR 25.00 % on 40 test clips",
        "best_on_test: the best checkpoint on the test clips",
        "2 frames of 64 x 64 pixels",
        f"checkpoint of run `dfew/fold_1`, step 7, epoch 3, sha256 `{'ab' * 32}`",
        found.sha256,
        "- fear: a face, fear.",
        "academic research only",
        "Frames are crops of one face, as the data set delivers them (DFEW).",
    ):
        assert said in text, said
    assert "not evaluated when" in card(replace(found, score=None))
    assert "(95 % 45.00 to 56.00)" in card(
        replace(found, score=Score(war=0.5, uar=0.5, clips=9, interval=(0.45, 0.56)))
    )
    generated = replace(found, origin=replace(ORIGIN, generated="seed 9"))
    assert "# dfer_clip on generated faces in DFEW's layout" in card(generated)


def test_an_existing_folder_is_refused_unless_it_is_the_same(tmp_path: Path, model: Recognizer) -> None:
    def again(**changes: Any) -> bool:
        own = prepared(tiny(arch="tiny-conv-64"))[1]
        found = config(tiny(arch="tiny-conv-64"), **changes)
        return save(Folder(tmp_path / "a"), found, model.state_dict(), card=card, own=own)[1]

    (tmp_path / "a").mkdir()  # an empty one is none
    assert again() and not again()
    with pytest.raises(UsageError, match="a: expected no folder, an empty one, or the same model, got another saved"):
        again(score=None)
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"got one with README\.md, config\.yaml, model\.safetensors, notes"):
        again()
    assert opened(tmp_path / "a").config.score is not None
    (tmp_path / "b").write_text("a file")
    with pytest.raises((UsageError, StorageError)):
        written(tmp_path / "b", model)
    assert (tmp_path / "b").read_text() == "a file"


def test_what_fails_leaves_nothing(tmp_path: Path, model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer.local_files.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StorageError, match="no space left"):
        written(tmp_path / "a", model)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_half_way_holds_no_saved_model(model: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = Folder("memory://half/model"), Folder.whole

    def fails(self: Folder, name: str) -> Any:
        if name == CONFIG:
            raise StorageError("the store is gone")
        return whole(self, name)

    monkeypatch.setattr(Folder, "whole", fails)
    with pytest.raises(StorageError, match="the store is gone"):
        written(out.url, model)
    assert out.names() == [] and open_saved(out.url) is None


def test_an_own_architecture_and_own_texts_come_with_it(tmp_path: Path) -> None:
    """They are read from the folder where it lies, also where it was moved to."""
    settings = {k: v for k, v in clip_settings(TowersConfig(arch="tiny-conv-64")).items() if k != "timm"}
    settings["vision_cfg"].pop("timm_model_pretrained")
    (tmp_path / "own.json").write_text(json.dumps(settings))
    (tmp_path / "own.yaml").write_text("".join(f"{name}: a face of {name}\n" for name in BASIC7))
    named = tiny(arch=str(tmp_path / "own.json"), text=str(tmp_path / "own.yaml"))
    plain, own = prepared(named)
    assert (plain.towers.arch, getattr(plain, "text", "")) == ("towers.arch.json", "text.yaml")
    model = build(named, label_set("basic7"), num_frames=2, seed=1)
    save(Folder(tmp_path / "a"), config(named), model.state_dict(), card=card, own=own)
    for name in ("own.json", "own.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "a").rename(tmp_path / "b")
    found = opened(tmp_path / "b")
    assert found.config.model.towers.arch == str(tmp_path / "b" / "towers.arch.json")
    assert torch.equal(found.recognizer().state_dict()["temporal.token"], model.state_dict()["temporal.token"])
    for path in (tmp_path / "b").iterdir():
        Folder("memory://own/c").write(path.name, path.read_bytes())
    assert len(opened("memory://own/c").recognizer().state_dict()) == len(model.state_dict())
    (tmp_path / "b" / "text.yaml").unlink()
    with pytest.raises(
        CheckpointError, match=r"text\.yaml: expected the file that config\.yaml names, got no such file"
    ):
        open_saved(str(tmp_path / "b"))


def refused(out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(out).recognizer()
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_missing_or_changed_part_is_named(tmp_path: Path, model: Recognizer) -> None:
    out = tmp_path / "a"
    written(out, model)
    weights, text, readme = ((out / name).read_bytes() for name in (WEIGHTS, CONFIG, CARD))
    (out / CARD).unlink()
    assert f"{out}/README.md: expected the model's card, which says what it was trained on, got no such" in refused(out)
    (out / CARD).write_bytes(readme)
    (out / WEIGHTS).write_bytes(weights[:-1000])
    assert f"{out}/model.safetensors: expected {len(weights)} bytes, got {len(weights) - 1000} bytes." in refused(out)
    (out / WEIGHTS).write_bytes(weights[:-4] + b"abcd")
    assert "that config.yaml names, got others. Copy the folder again" in refused(out)
    (out / WEIGHTS).unlink()
    assert "expected the weights, got no such file" in refused(out)
    (out / WEIGHTS).write_bytes(weights)
    for old, new, said in (
        (b"saved_model: 1", b"saved_model: 2", "expected a saved model of version 1, got 2. Use the version"),
        (b"frames: 2", b"frames: 2000000", "data.frames: expected a whole number from 1 to 4096, got 2000000"),
        (b"- fear\n", b"- Fear\n", "classes: expected distinct names of small letters"),
        (b"files: {}", b"files: {text: /etc/passwd}", "a model that names the folder's own files alone, got none"),
        (b"text: class_descriptor", b"text: /etc/x.yaml", "the folder's own files alone, got '/etc/x.yaml'"),
        (b"start: null", b"start: s3://bucket/x", "the folder's own files alone, got 's3://bucket/x'"),
        (b"num_contexts: 8", b"num_context: 8", "model.num_context: unknown key. Did you mean 'num_contexts'"),
    ):
        assert old in text
        (out / CONFIG).write_bytes(text.replace(old, new))
        assert said in refused(out)
    (out / CONFIG).write_bytes(text.replace(b"num_contexts: 8", b"num_contexts: 4"))
    assert "prompts.contexts (7, 8," in refused(out)
    (out / CONFIG).unlink()
    assert open_saved(str(out)) is None


def test_weights_that_are_cut_off_or_not_finite_are_refused_whatever_config_says(
    tmp_path: Path, model: Recognizer
) -> None:
    """config.yaml may have been written for the damaged file."""
    broken = {name: value.clone() for name, value in model.state_dict().items()}
    broken["temporal.token"][0] = float("nan")
    save(Folder(tmp_path / "a"), config(tiny(arch="tiny-conv-64")), broken, card=card, own={})
    assert "model.safetensors: expected finite numbers, got others in temporal.token." in refused(tmp_path / "a")
    out = tmp_path / "b"
    found = written(out, model)
    cut = (out / WEIGHTS).read_bytes()[:-1000]
    (out / WEIGHTS).write_bytes(cut)
    text = (out / CONFIG).read_text().replace(found.sha256, hashlib.sha256(cut).hexdigest())
    (out / CONFIG).write_text(text.replace(f"bytes: {found.bytes}", f"bytes: {len(cut)}"))
    assert "expected a whole safetensors file, got a damaged one" in refused(out)


def test_other_folders_are_none(tmp_path: Path) -> None:
    for text in (None, "run: x", "a: [", "- 1", "\0"):
        if text is not None:
            (tmp_path / CONFIG).write_text(text)
        assert open_saved(str(tmp_path)) is None
    assert open_saved(str(tmp_path / "gone")) is None and open_saved(str(tmp_path / CONFIG)) is None


def test_classes_are_names() -> None:
    with pytest.raises(ConfigProblem, match="classes: expected distinct names"):
        config(tiny(), classes=("a", "a"))
