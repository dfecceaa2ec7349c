"""A trained run on other shards, under another protocol, with shuffled frames: a second result, never a changed first
one; and the last checkpoint beside the selected one."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.data.config import DataConfig
from dfer.data.loader import Loader
from dfer.data.sampling import shuffled
from dfer.distributed import World, process_group
from dfer.emotions import label_set
from dfer.errors import CheckpointError, UsageError
from dfer.evaluation.results import FoldResult, read_result
from dfer.jobs import other
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.fold_data import eval_loader, open_fold
from dfer.jobs.train import train
from dfer.models.config import DferClipConfig, TemporalConfig, TowersConfig
from dfer.run.config import CheckpointConfig
from dfer.run.layout import RESULT, evaluations, finished, others
from dfer.storage import Folder
from dfer.store.format import Overlap
from dfer.training.config import GroupConfig, SgdConfig, StepScheduleConfig
from tests.unit.data.shardkit import CLASSES, Clip, jpeg, write_shards

RATES = {name: GroupConfig(lr=0.1) for name in ("image", "temporal", "prompts")}
FRAMES = [jpeg(level) for level in (10, 60, 110, 160, 210, 250)]


@pytest.fixture(scope="module")
def alone() -> Any:
    with process_group(World()):
        yield World()


def clip(key: str, label: int) -> Clip:
    return Clip(key=key, label=label, frames=FRAMES[label % 3 :])


def config(home: Path, shards: Path, **changes: Any) -> RunConfig:
    temporal = TemporalConfig(depth=1, heads=2, head_dim=16, mlp_dim=48)
    model = DferClipConfig(towers=TowersConfig(arch="tiny-conv-64"), temporal=temporal, num_contexts=2)
    values: dict[str, Any] = {
        "run": str(home),
        "epochs": 3,
        "batch": 1,
        "data": DataConfig(shards=str(shards), workers=0, frames=4, size=64),
        "model": model,
        "optim": SgdConfig(groups=RATES),
        "checkpoint": CheckpointConfig(keep_last=9),
    }
    return RunConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, alone: World) -> RunConfig:
    """A finished run: fold 1 tests on a and b, trains on c and d. A second protocol tests on c."""
    home = tmp_path_factory.mktemp("trained")
    parts = {"fold_1": [[clip("a", 0), clip("b", 1)]], "fold_2": [[clip("c", 2), clip("d", 3)]]}
    swapped = {
        "source": "test",
        "folds": {"1": {"train": {"partitions": ["fold_1"]}, "test": {"partitions": ["fold_2"]}}},
    }
    write_shards(home / "shards", parts, protocols={"swapped": swapped})
    found = config(home / "run", home / "shards")
    train(found, alone)
    return found


def files(home: str) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in Path(home).rglob("*") if path.is_file()}


def second(run: RunConfig, alone: World, **changes: Any) -> tuple[FoldResult, str]:
    """A second result and its file; the files of the run stay as they are."""
    before = files(run.run)
    found = evaluate_run(changes.pop("config", run), alone, trained=True, **changes)
    after = files(run.run)
    assert {name: after[name] for name in before} == before, "the run's own files"
    new = sorted(after.keys() - before.keys())
    assert len(new) == 2 and new[1] == new[0].replace(".json", "_predictions.csv")
    assert read_result(Folder(run.run), new[0]) == found and others(Folder(run.run)) == [new[0]]
    assert finished(Folder(run.run)) and evaluations(Folder(run.run)) == []
    for name in new:
        (Path(run.run) / name).unlink()
    return found, new[0]


@pytest.mark.slow("the first of the file: its fixture trains a run")
def test_other_shards_give_a_second_result_with_classes_by_name(
    tmp_path: Path, trained: RunConfig, alone: World
) -> None:
    """The other set numbers its classes otherwise, has one that the model lacks, and lacks most of the model's."""
    classes = ("sadness", "contempt", "happiness")
    clips = [clip("a", 0), clip("x", 1), clip("y", 2), clip("z", 2)]
    write_shards(tmp_path / "other", {"train": [[clip("q", 0)]], "test": [clips]}, classes=classes)
    plain = json.loads((tmp_path / "other" / "manifest.json").read_text())
    plain["protocols"]["published"]["overlap"] = {"tests": 4, "twice": 0, "never": 0, "subjects": 2}
    (tmp_path / "other" / "manifest.json").write_text(json.dumps({**plain, "dataset": "otherset"}))
    elsewhere = replace(trained, data=replace(trained.data, shards=str(tmp_path / "other")))
    found, name = second(trained, alone, config=elsewhere)
    assert name == f"results/other-otherset_{found.manifest_sha256[:8]}-fold_1-protocol_published.json"
    assert (found.dataset, found.classes, found.clips) == ("otherset", CLASSES, 3)
    assert found.count == (2, 1, 0, 0, 0, 0, 0) and found.recall[2:] == (None,) * 5
    assert found.trained is not None and (found.trained.dataset, found.trained.protocol) == ("test", "published")
    assert found.trained.manifest_sha256 == read_result(Folder(trained.run)).manifest_sha256 != found.manifest_sha256
    assert (found.train_partitions, found.test_partitions) == (("fold_2",), ("test",))
    assert (found.split, found.overlap) == ("published", Overlap(tests=4, twice=0, never=0, subjects=2))
    own = read_result(Folder(trained.run))
    assert (own.split, own.overlap) == ("published", None)


def test_shards_without_any_of_the_classes_are_refused(tmp_path: Path, trained: RunConfig, alone: World) -> None:
    write_shards(tmp_path / "other", {"train": [[clip("q", 0)]], "test": [[clip("a", 0)]]}, classes=("calm", "wild"))
    elsewhere = replace(trained, data=replace(trained.data, shards=str(tmp_path / "other")))
    with pytest.raises(UsageError, match=r"expected the 7 classes happiness, .*, got 2 without happiness"):
        evaluate_run(elsewhere, alone, trained=True)


def test_clips_of_the_training_are_refused(trained: RunConfig, alone: World) -> None:
    before = files(trained.run)
    with pytest.raises(CheckpointError) as caught:
        evaluate_run(replace(trained, data=replace(trained.data, protocol="swapped")), alone, trained=True)
    assert str(caught.value) == (
        f"{trained.run}: expected test clips that the run was not trained on, got 2 of the 2 clips of fold_2 that it "
        "was trained on (c, d). Test on what fold 1 of `published` leaves out."
    )
    assert files(trained.run) == before


def test_the_same_set_built_again_counts_as_other_shards(tmp_path: Path, trained: RunConfig, alone: World) -> None:
    parts = {"fold_1": [[clip("a", 0), clip("b", 1), clip("e", 1)]], "fold_2": [[clip("c", 2), clip("d", 3)]]}
    write_shards(tmp_path / "again", parts)
    again = replace(trained, data=replace(trained.data, shards=str(tmp_path / "again")))
    assert second(trained, alone, config=again)[0].clips == 3
    with pytest.raises(CheckpointError, match=r"got 2 of the 2 clips of fold_2 that it was trained on \(c, d\)"):
        evaluate_run(replace(again, fold=2), alone, trained=True)


def test_another_number_of_frames_is_a_second_result_or_refused_by_the_model(tmp_path: Path, alone: World) -> None:
    parts = {"fold_1": [[clip("a", 0), clip("b", 1)]], "fold_2": [[clip("c", 2), clip("d", 3)]]}
    write_shards(tmp_path / "shards", parts)
    mean = DferClipConfig(towers=TowersConfig(arch="tiny-conv-64"), temporal=TemporalConfig(depth=0), num_contexts=2)
    rates = {name: RATES[name] for name in ("image", "prompts")}
    run = config(tmp_path / "run", tmp_path / "shards", model=mean, optim=SgdConfig(groups=rates), epochs=1)
    train(run, alone)
    found, name = second(run, alone, config=replace(run, data=replace(run.data, frames=6)))
    assert name == "results/other-frames_6.json" and found.trained is None
    assert (found.protocol.num_frames, read_result(Folder(run.run)).protocol.num_frames) == (6, 4)


@pytest.mark.parametrize("key", ["seed", "select", "fold"])
def test_other_keys_are_refused_as_ever(trained: RunConfig, alone: World, key: str) -> None:
    value: Any = {"seed": 5, "select": "best_on_test", "fold": 2}[key]
    with pytest.raises(CheckpointError, match=f"1 changed keys \\({key} was"):
        evaluate_run(replace(trained, **{key: value}), alone, trained=True)


def test_a_key_that_holds_further_keys_is_put_back_as_a_whole(
    trained: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As test views will be: none, or a mapping."""
    monkeypatch.setattr(other, "TESTED", ("schedule", "data.frames"))
    changed = replace(trained, schedule=StepScheduleConfig(milestones=(1, 2)), data=replace(trained.data, frames=8))
    own, differ = other.own_config(changed, Folder(trained.run))
    assert own == trained and [*differ] == ["schedule", "data.frames"]
    assert (differ["schedule"]["milestones"], differ["data.frames"]) == ([1, 2], 8)
    assert other.own_config(trained, Folder(trained.run)) == (trained, {})


# --- shuffled frames


def test_shuffled_frames_are_the_same_frames_in_another_order(trained: RunConfig) -> None:
    clips = open_fold(trained)
    plain, mixed, again = (
        torch.cat([b.frames for b in eval_loader(trained, clips, clips.test, World(), shuffle_frames=on).epoch(0)])
        for on in (False, True, True)
    )
    assert torch.equal(mixed, again) and not torch.equal(plain, mixed)
    for index, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        order = shuffled(4, trained.seed, index)
        assert sorted(order.tolist()) == [0, 1, 2, 3] and torch.equal(after, before[order])
    assert len({tuple(shuffled(16, 1, index)) for index in range(50)}) == 50
    assert shuffled(16, 1, 3).tolist() != shuffled(16, 2, 3).tolist()


def test_any_number_of_ranks_and_workers_shuffles_alike(trained: RunConfig) -> None:
    clips = open_fold(trained)
    whole = next(iter(eval_loader(trained, clips, clips.test, World(), shuffle_frames=True).epoch(0)))
    for rank in (0, 1):
        loader = eval_loader(
            replace(trained, eval_batch=1), clips, clips.test, World(rank=rank, size=2), shuffle_frames=True
        )
        assert isinstance(loader, Loader)
        (batch,) = loader.epoch(0)
        assert torch.equal(batch.frames[0], whole.frames[int(batch.index[0])])


def test_a_shuffled_evaluation_is_a_second_result(trained: RunConfig, alone: World) -> None:
    found, name = second(trained, alone, shuffle_frames=True)
    own = read_result(Folder(trained.run))
    assert name == "results/other-shuffled.json" and found.protocol.shuffled and not own.protocol.shuffled
    assert (found.trained, found.count, found.manifest_sha256) == (None, own.count, own.manifest_sha256)


def test_a_folder_with_results_of_another_run_is_not_overwritten(
    tmp_path: Path, trained: RunConfig, alone: World
) -> None:
    out = Folder(tmp_path / "out")
    twin = shutil.copytree(trained.run, tmp_path / "twin")
    for _ in range(2):  # the same run may be evaluated again
        evaluate_run(trained, alone, trained=True, out=out)
    own = out.read("results/test.json")
    with pytest.raises(UsageError, match=r"out: .* without results, .*twin, got results of .*run\. Choose"):
        evaluate_run(replace(trained, run=str(twin)), alone, trained=True, out=out)
    assert out.read("results/test.json") == own
    out.remove("results/run.txt")
    with pytest.raises(UsageError, match="got results of a run that is not recorded"):
        evaluate_run(trained, alone, trained=True, out=out)


def test_weights_that_are_no_runs_are_not_shuffled(tmp_path: Path, trained: RunConfig, alone: World) -> None:
    with pytest.raises(UsageError, match=r"--shuffle-frames: expected a run with a result, got none\. Evaluate"):
        evaluate_run(replace(trained, run=str(tmp_path)), alone, trained=False, shuffle_frames=True)


# --- last beside best


@pytest.mark.slow("trains a run of nine evaluations")
def test_the_last_checkpoint_stands_beside_the_selected_one(tmp_path: Path, trained: RunConfig, alone: World) -> None:
    """The last one's numbers are those of a run of the same seed that selects nothing."""
    run = replace(trained, run=str(tmp_path / "best"), select="best_on_test")
    best, plain = train(run, alone), read_result(Folder(trained.run))
    assert plain.last is None and best.last is not None
    assert (best.last.step, best.last.epoch, best.last.scores) == (plain.step, 3, plain.scores)
    assert best.step < best.last.step and best.war >= plain.war
    with (tmp_path / "best" / "results" / "test_predictions.csv").open() as file:
        right = [row["label"] == row["predicted"] for row in csv.DictReader(file)]
    assert sum(right) / len(right) == best.war, "the predictions are those of the selected checkpoint"
    again = evaluate_run(run, alone, trained=True)
    assert replace(again, finished=best.finished, seconds=best.seconds) == best
    assert train(run, alone) == again and label_set("basic7").names == again.classes


def test_a_last_result_of_other_clips_is_refused(tmp_path: Path, trained: RunConfig) -> None:
    plain = json.loads((Path(trained.run) / RESULT).read_text())
    scores = {key: plain[key] for key in ("confusion", "war", "uar", "recall", "count")}
    last = {"step": 6, "epoch": 3, "scores": {**scores, "count": [1] * 7}}
    Folder(tmp_path).write(RESULT, json.dumps({**plain, "last": last}).encode())
    with pytest.raises(CheckpointError, match="last: expected the 2 clips of the result, got others"):
        read_result(Folder(tmp_path))
