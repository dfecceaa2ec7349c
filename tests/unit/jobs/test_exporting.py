"""A run that trains nothing as a saved model, and what cards of several methods say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dfer.__main__ import main
from dfer.data.config import DataConfig
from dfer.data.recipes import CnnAugment
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, UsageError
from dfer.evaluation.results import read_result
from dfer.evaluation.statistics import intervals, strata_of
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.export import export
from dfer.jobs.saved import run_of
from dfer.jobs.train import train
from dfer.models.config import ContrastiveConfig, ZeroShotConfig
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.saved import open_saved
from dfer.storage import Folder
from dfer.training.config import EngineConfig, GroupConfig, SgdConfig
from tests.unit.data.shardkit import Clip, jpeg, write_shards

OTHER = {f"fold_{k}": [[Clip(key=f"x{k}{i}", label=i, frames=[jpeg(30 * i)] * 3) for i in range(7)]] for k in (1, 2)}
FOLDS = {f"fold_{k}": [[Clip(key=f"{k}{i}", label=i, frames=[jpeg(36 * i + k)] * 3) for i in range(7)]] for k in (1, 2)}


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture
def zero_shot(tmp_path: Path) -> RunConfig:
    """Towers with random weights from a file, and a head from another."""
    write_shards(tmp_path / "shards", FOLDS)
    torch.manual_seed(2)
    torch.save({"mlp.weight": torch.randn(50, 128)}, tmp_path / "head.pth")
    return RunConfig(
        run=str(tmp_path / "run"),
        epochs=1,
        batch=4,
        data=DataConfig(shards=str(tmp_path / "shards"), workers=0, frames=2, size=64),
        model=ZeroShotConfig(towers=TowersConfig(arch="tiny-conv-64"), head=str(tmp_path / "head.pth")),
        engine=EngineConfig(name="ddp"),
        optim=SgdConfig(groups={}),
    )


def test_a_run_that_trains_nothing_is_exported_with_its_head(
    tmp_path: Path, zero_shot: RunConfig, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a moved folder, when the head's own file is gone, it answers as the run did; also on another fold."""
    result = evaluate_run(zero_shot, alone, trained=False)
    assert main(["export", zero_shot.run, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out: written, nothing trained, {result.line}\n"
    answers = (tmp_path / "run" / "results" / "test_predictions.csv").read_text()
    for name in ("head.pth", "run"):
        (tmp_path / name).rename(tmp_path / f"gone_{name}")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert {path.name for path in (tmp_path / "moved").iterdir()} >= {"head.pth", "model.safetensors"}
    saved = open_saved(str(tmp_path / "moved"))
    assert saved is not None
    assert saved.config.score is not None and saved.config.score.war == result.war
    again = run_of(saved, overrides=[f"data.shards={tmp_path}/shards", f"run={tmp_path}/again", "data.workers=0"])
    assert evaluate_run(again, alone, trained=False).confusion == result.confusion
    assert (tmp_path / "again" / "results" / "test_predictions.csv").read_text() == answers
    other = replace(again, fold=2, run=str(tmp_path / "two"))
    assert evaluate_run(other, alone, trained=False).fold == 2, "it was trained on no clip"
    card = (tmp_path / "moved" / "README.md").read_text()
    assert "| trained on | nothing: the weights are evaluated |" in card and "dfer train" not in card
    assert "| selection | none: nothing was trained |" in card and "| initial weights | `random weights` |" in card
    assert f"| source | run `{tmp_path.name}/run`, which trained nothing |" in card


def begun(config: RunConfig, tmp_path: Path, *, fold: int, **changes: Any) -> RunConfig:
    """A zero-shot run whose towers are those of a contrastive run on `fold` of the shards, joined with others."""
    write_shards(tmp_path / "other", OTHER, dataset="other")
    towers = TowersConfig(arch="tiny-conv-64")
    first = replace(
        config,
        run=str(tmp_path / "first"),
        fold=fold,
        data=replace(config.data, join=(str(tmp_path / "other"),)),
        model=ContrastiveConfig(towers=towers, text_from="class", train_text=False),
        optim=SgdConfig(groups={name: GroupConfig(lr=1e-3) for name in ("image", "scale")}),
    )
    with process_group(World()):
        train(first, World())
    start = ZeroShotConfig(towers=towers, start=first.run)
    return replace(config, run=str(tmp_path / "begun"), fold=fold, model=start, **changes)


def test_a_zero_shot_run_that_begins_from_a_training_keeps_what_that_was_trained_on(
    tmp_path: Path, zero_shot: RunConfig
) -> None:
    """All sets of a joint training; on the other fold, whose test clips it was trained on, its use is refused."""
    config = begun(zero_shot, tmp_path, fold=1)
    with process_group(World()):
        result = evaluate_run(config, World(), trained=False)
        exported = export(config, Folder(tmp_path / "out")).config
        origin = exported.origin
        assert [(each.dataset, each.fold) for each in origin.sets] == [("test", 1), ("other", 1)]
        assert (origin.trained, origin.dataset, origin.fold, origin.selection) == (True, "test", 1, "last")
        assert exported.score is not None and exported.score.war == result.war
        assert "; also on other, fold 1 of published |" in (tmp_path / "out" / "README.md").read_text()
        saved = open_saved(str(tmp_path / "out"))
        assert saved is not None
        for shards in ("shards", "other"):
            words = [f"data.shards={tmp_path / shards}", f"run={tmp_path}/{shards}_2", "fold=2", "data.workers=0"]
            with pytest.raises(CheckpointError, match=r"expected a run that saw none of the test clips of fold 2"):
                evaluate_run(run_of(saved, overrides=words), World(), trained=False)


def test_a_score_on_other_data_is_not_that_of_the_training(tmp_path: Path, zero_shot: RunConfig) -> None:
    config = begun(zero_shot, tmp_path, fold=1)
    write_shards(tmp_path / "third", FOLDS, dataset="third")
    config = replace(config, data=replace(config.data, shards=str(tmp_path / "third")))
    with process_group(World()):
        result = evaluate_run(config, World(), trained=False)
        exported = export(config, Folder(tmp_path / "out")).config
    assert [each.dataset for each in exported.origin.sets] == ["test", "other"] and exported.score is None
    said = f"| score on other data | {result.line} on 7 test clips of {result.data}, fold 1 |"
    assert said in (tmp_path / "out" / "README.md").read_text()


def test_what_a_run_that_trains_nothing_lacks_is_said(tmp_path: Path, zero_shot: RunConfig, alone: World) -> None:
    with pytest.raises(CheckpointError, match=r"expected an evaluated run, got one without a result\. Eval"):
        export(zero_shot, Folder(tmp_path / "out"))
    evaluate_run(zero_shot, alone, trained=False)
    with pytest.raises(UsageError, match=r"--checkpoint: expected none for a method that trains nothing, got last\. "):
        export(zero_shot, Folder(tmp_path / "out"), choice="last")
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_cnn_is_one_of_stills(tmp_path: Path, alone: World) -> None:
    """Its recipe, targets and averaged weights are named, and its commands exist."""
    write_shards(tmp_path / "shards", FOLDS)
    values: dict[str, Any] = {"workers": 0, "frames": 1, "size": 32, "augment": CnnAugment(side=36)}
    data = DataConfig(shards=str(tmp_path / "shards"), **values)
    config = RunConfig(
        run=str(tmp_path / "run"),
        epochs=1,
        batch=7,
        ema=0.9,
        data=replace(data, mix=replace(data.mix, label_smoothing=0.1)),
        model=CnnConfig(net="vgg19", width=4),
        engine=EngineConfig(name="ddp"),
        optim=SgdConfig(groups={"network": GroupConfig(lr=0.01)}),
    )
    train(config, alone)
    found = export(config, Folder(tmp_path / "out")).config
    result = read_result(Folder(config.run))
    labels = [k for k, row in enumerate(result.confusion) for _ in range(sum(row))]
    right = [
        float(k == j) for k, row in enumerate(result.confusion) for j, count in enumerate(row) for _ in range(count)
    ]
    war = intervals(strata_of({1: (labels, right)})).war
    assert found.score is not None and found.score.interval == (war.low, war.high)
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert front["model-index"][0]["results"][0]["task"]["type"] == "image-classification"
    for said in (
        "| input | 1 frame of 32 x 32 pixels, RGB |",
        "| test clips | recipe `cnn`: 1 view, centre 32 of 36 |",
        "| training clips | recipe `cnn`: random crop out of 36, flip 0.5 |",
        "| targets | smoothed by 0.1 |",
        "| evaluated weights | average of the weights, decay 0.9 |",
        "dfer train methods/vgg19 sets/SET model.start=FOLDER\n",
        "Pictures are crops of one face",
    ):
        assert said in card, said
