"""What is refused or told before a teacher is loaded: packages, picture size, a name that is no folder."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.errors import CheckpointError, UsageError
from dfer.jobs.pair_data import check_tower
from dfer.jobs.pairs import PairsConfig
from dfer.models.config_towers import TowersConfig
from dfer.teacher import ready
from dfer.teacher.build import build_teacher
from dfer.teacher.config import Blip2TeacherConfig, InstructBlipTeacherConfig, TextTeacherConfig, WordsTeacherConfig
from dfer.teacher.ready import check_packages, check_ready
from tests.unit.teacher import models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIDE = models.SIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.blip("blip2", tmp_path_factory.mktemp("models") / "blip2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; downloads are allowed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def cached(cache: Path, folder: Path) -> Path:
    """The model `me/tiny` as the hub's client stores it."""
    home = cache / "models--me--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, home / "snapshots" / COMMIT))


def lacks(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    monkeypatch.setattr(ready, "find_spec", lambda name: None if name in missing else object())


def test_pictures_of_another_size_are_refused_before_the_teacher_is_loaded(folder: Path, tmp_path: Path) -> None:
    assert check_ready(Blip2TeacherConfig(model=str(folder)), size=SIDE) == []
    with pytest.raises(
        UsageError, match=r"pairs.size: expected 28, the pixels .*blip2 takes, got 224. Set pairs.size=28"
    ):
        check_ready(Blip2TeacherConfig(model=str(folder)), size=224)
    other = shutil.copytree(folder, tmp_path / "model")
    plain = json.loads((other / "config.json").read_text())
    del plain["vision_config"]["image_size"]
    (other / "config.json").write_text(json.dumps(plain))
    assert check_ready(Blip2TeacherConfig(model=str(other)), size=224) == []
    encoder = models.text_encoder(tmp_path / "text")
    assert check_ready(TextTeacherConfig(model=str(encoder)), size=17) == []


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, "accelerate")
    for kind in (Blip2TeacherConfig, InstructBlipTeacherConfig):
        check_packages(kind())
        with pytest.raises(
            UsageError, match=r"devices=all: expected accelerate, got none. Install it in .*teacher.*; or set"
        ):
            check_packages(kind(devices="all"))
    lacks(monkeypatch, "transformers", "accelerate")
    with pytest.raises(
        UsageError, match=r"name=text: expected transformers, got none. Install it in dfer's environment: pip"
    ):
        check_ready(TextTeacherConfig(), size=224)
    with pytest.raises(UsageError, match=r"name=blip2: expected transformers"):
        build_teacher(Blip2TeacherConfig(), torch.device("cpu"))
    assert check_ready(WordsTeacherConfig(), size=224) == []


def test_a_name_that_is_no_folder_is_told_or_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Blip2TeacherConfig(model="modles/blip2")
    line = (
        "teacher.model: there is no folder modles/blip2; modles/blip2, revision main will be downloaded from the "
        "Hugging Face hub"
    )
    assert check_ready(config, size=224) == [line]
    towers = TowersConfig(arch="tiny-vit-64")
    places = {"pictures": str(tmp_path), "features": str(tmp_path)}
    check_tower(PairsConfig(size=64, towers=towers, teacher=config, **places))
    assert capsys.readouterr().err == f"{line}\n"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
        with pytest.raises(
            CheckpointError, match=r"teacher.model=modles/blip2, revision main: expected a folder, or a .*hub"
        ):
            check_ready(config, size=224)
        monkeypatch.delenv(name)


def test_a_model_in_the_hubs_cache_is_checked_like_a_folder(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, config = cached(cache, folder), Blip2TeacherConfig(model="me/tiny")
    assert check_ready(config, size=SIDE) == []
    assert len(check_ready(Blip2TeacherConfig(model="me/tiny", revision="v2"), size=224)) == 1
    with pytest.raises(UsageError, match=r"pairs.size: expected 28"):
        check_ready(config, size=224)
    with pytest.raises(
        CheckpointError, match=r"expected model_type instructblip for teacher.name=instruct_blip, got blip"
    ):
        check_ready(InstructBlipTeacherConfig(model="me/tiny"), size=SIDE)
    next(snapshot.glob("model-*")).unlink()
    assert "will be downloaded" in check_ready(config, size=SIDE)[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"got 1 of \d+ missing: model-"):
        check_ready(config, size=SIDE)


def test_all_devices_are_left_to_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("accelerate") is None:
        monkeypatch.setattr(ready, "find_spec", lambda name: object())
    kind, asked = models.BLIPS["blip2"][1], []
    whole = kind.from_pretrained.__func__

    def load(cls: Any, *args: Any, device_map: Any = None, **more: Any) -> Any:
        asked.append(device_map)
        return whole(cls, *args, **more)

    monkeypatch.setattr(kind, "from_pretrained", classmethod(load))
    for devices in ("one", "all"):
        build_teacher(Blip2TeacherConfig(model=str(folder), devices=devices), torch.device("cpu"))  # type: ignore[arg-type]
    assert asked == [None, "auto"]
