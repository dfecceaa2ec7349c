"""Test views through a whole run: a second result beside the first, and runs of before there were recipes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from dfer.config import to_plain
from dfer.data.config import DataConfig
from dfer.data.recipes import DkClipAugment, ViewsConfig
from dfer.distributed import World, process_group
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.fold_data import eval_loader, open_fold
from dfer.jobs.predict import read_clip
from dfer.jobs.train import train
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.run.layout import RESULT
from dfer.storage import Folder
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from tests.unit.data.shardkit import Clip, jpeg, write_shards

SIX = ViewsConfig(clips=2, crops=3)


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of one step on two folds of two clips, whose frames are wider than high."""
    frames = [jpeg(30 * number, height=40, width=56) for number in range(6)]
    folds = {f"fold_{k}": [[Clip(key=f"{k}{n}", frames=frames) for n in "ab"]] for k in (1, 2)}
    write_shards(tmp_path / "shards", folds)
    temporal = TemporalConfig(depth=0)
    return RunConfig(
        run=str(tmp_path / "run"),
        epochs=1,
        batch=2,
        eval_batch=8,
        data=DataConfig(
            shards=str(tmp_path / "shards"),
            workers=0,
            frames=2,
            size=64,
            augment=DkClipAugment(),
            sampling="dk_clip",
        ),
        model=DferClipConfig(towers=TowersConfig(arch="tiny-conv-64"), temporal=temporal, num_contexts=2),
        engine=EngineConfig(name="ddp"),
        optim=SgdConfig(groups={"image": GroupConfig(lr=1e-5), "prompts": GroupConfig(lr=1e-3)}),
    )


@pytest.mark.slow("trains a run and evaluates it on other views")
def test_other_views_give_a_second_result_beside_the_first(config: RunConfig, alone: World, tmp_path: Path) -> None:
    first = train(config, alone)
    assert first.protocol.views == "1 view, short side 73 not antialiased, centre 64, frames as DK-CLIP samples"
    before = (tmp_path / "run" / RESULT).read_text()
    seen = replace(config, data=replace(config.data, views=SIX))
    second = evaluate_run(seen, alone, trained=True)
    path = tmp_path / "run" / "results" / "other-views_clips_2_crops_3.json"
    assert json.loads(path.read_text())["protocol"]["views"] == second.protocol.views
    elsewhere = evaluate_run(seen, alone, trained=True, out=Folder(tmp_path / "six"))
    assert elsewhere.confusion == second.confusion and not (tmp_path / "six" / RESULT).exists()
    assert second.protocol.views.startswith("6 views averaged (2 samplings of the frames x 3 crops), short side 64")
    assert (second.clips, second.step) == (first.clips, first.step) == (2, 1)
    assert (tmp_path / "run" / RESULT).read_text() == before
    assert evaluate_run(config, alone, trained=True).protocol == first.protocol


@pytest.mark.parametrize(("eval_batch", "clips"), [(1, 1), (6, 1), (12, 2), (17, 2)])
def test_a_batch_of_evaluation_has_as_many_clips_as_fit_with_their_views(
    config: RunConfig, eval_batch: int, clips: int
) -> None:
    seen = replace(config, eval_batch=eval_batch, data=replace(config.data, views=SIX))
    fold = open_fold(seen)
    batches = list(eval_loader(seen, fold, fold.test, World()).epoch(0))
    assert [len(batch.index) for batch in batches] == [6 * clips] * (2 // clips)


def test_a_run_of_before_there_were_recipes_goes_on(config: RunConfig, alone: World, tmp_path: Path) -> None:
    """Its config.yaml names no recipe, no sampling and no views."""
    plain = replace(config, data=DataConfig(shards=config.data.shards, workers=0, frames=2, size=64))
    train(plain, alone)
    path = tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["data"]["augment"]["name"], old["data"]["sampling"], old["data"]["views"]
    path.write_text(yaml.safe_dump(old))
    assert evaluate_run(plain, alone, trained=True).protocol.views == "1 view"
    assert train(plain, alone).step == 1
    assert to_plain(plain)["data"]["augment"]["name"] == "dfer_clip"


def test_predict_shows_a_clip_as_the_test_does(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(jpeg(30 * number, height=40, width=56))
    for views in (None, SIX):
        seen = replace(config, data=replace(config.data, views=views))
        fold = open_fold(seen)
        batch = next(iter(eval_loader(replace(seen, eval_batch=6), fold, fold.test, World()).epoch(0)))
        assert torch.equal(read_clip(folder, seen.data), batch.frames[: seen.data.num_views])
