"""Parts of a run that need no training: the checkpoint that is chosen, and what is loaded of it."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dfer.__main__ import main
from dfer.config import ConfigProblem, from_plain, to_yaml
from dfer.config_files import load
from dfer.data.config import DataConfig
from dfer.data.order import accumulation
from dfer.distributed import World, process_group
from dfer.emotions import BASIC7, label_set
from dfer.errors import CheckpointError, DferError, StoppedError, UsageError
from dfer.evaluation.results import FoldResult, Protocol, fold_result, read_result, save_result
from dfer.evaluation.scores import scores
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.crossval import crossval
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.facts import load_checkpoint, selected_checkpoint
from dfer.jobs.fold_data import open_fold, train_loader
from dfer.jobs.predict import predict
from dfer.jobs.train import train
from dfer.models.build import build
from dfer.models.config import DferClipConfig
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.run.changes import Change
from dfer.run.checkpoints import Checkpoint, Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.run.layout import RESULT, committed, finished
from dfer.run.lease import Fence
from dfer.storage import Folder
from dfer.store.format import to_json
from dfer.store.shards import Store
from dfer.training.config import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    EngineConfig,
    ExponentialScheduleConfig,
    GroupConfig,
    ScheduleConfig,
    SgdConfig,
    StepScheduleConfig,
)
from tests.unit.data.shardkit import Clip, write_shards

EMOTIONS = label_set("basic7")
RATES = {"image": GroupConfig(lr=0.1), "temporal": GroupConfig(lr=0.1), "prompts": GroupConfig(lr=0.1)}


def model(*, depth: int = 1, contexts: int = 2, width: int = 48) -> DferClipConfig:
    temporal = TemporalConfig(depth=depth, heads=2, head_dim=16, mlp_dim=width)
    return DferClipConfig(towers=TowersConfig(arch="tiny-vit-64"), temporal=temporal, num_contexts=contexts)


def run_config(folder: Path, **changes: Any) -> RunConfig:
    values = {
        "run": str(folder),
        "epochs": 1,
        "data": DataConfig(shards="nowhere"),
        "model": model(),
        "optim": SgdConfig(groups=RATES),
    }
    return RunConfig(**{**values, **changes})


def saved(folder: Path, step: int, *, best: int | None = None, weights: dict[str, torch.Tensor] | None = None) -> None:
    state = {"best": {"step": best} if best else None}
    checkpoints = Checkpoints(Folder(folder), world=World(), config=CheckpointConfig(keep_last=9))
    checkpoints.start(checkpoints.latest())
    checkpoints.save(step, weights=weights or {"w": torch.tensor([float(step)])}, optimizer={}, state=state)
    checkpoints.finish()


def chosen(config: RunConfig) -> Checkpoint:
    return selected_checkpoint(config, Checkpoints(Folder(config.run), world=World()))


@pytest.mark.parametrize(("select", "step"), [("last", 3), ("best_on_val", 1), ("best_on_test", 1)])
def test_the_selection_rule_chooses_the_checkpoint(tmp_path: Path, select: str, step: int) -> None:
    for number in (1, 2, 3):
        saved(tmp_path, number, best=1)
    found = chosen(run_config(tmp_path, select=select))
    assert found.step == step and found.weights()["w"].item() == step


@pytest.mark.parametrize("select", ["last", "best_on_val"])
def test_a_run_without_checkpoints_says_to_train(tmp_path: Path, select: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        chosen(run_config(tmp_path, select=select))
    assert str(caught.value) == (
        f"{tmp_path}/checkpoints: expected a checkpoint selected by `{select}`, got none. "
        "Train first: dfer train CONFIG"
    )


def test_a_run_that_selected_nothing_has_no_best(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="selected by `best_on_val`, got none"):
        chosen(run_config(tmp_path, select="best_on_val"))


def test_weights_are_loaded_whole(tmp_path: Path) -> None:
    source, target = (build(model(), EMOTIONS, num_frames=4, seed=seed) for seed in (1, 2))
    saved(tmp_path, 1, weights={k: v.contiguous() for k, v in source.state_dict().items()})
    assert any(not torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    load_checkpoint(target, chosen(run_config(tmp_path)))
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


@pytest.mark.parametrize("other", [model(depth=2), model(depth=0), model(contexts=4), model(width=64)], ids=str)
def test_weights_of_another_model_are_refused(tmp_path: Path, other: DferClipConfig) -> None:
    weights = build(other, EMOTIONS, num_frames=4, seed=1).state_dict()
    saved(tmp_path, 1, weights={k: v.contiguous() for k, v in weights.items()})
    target = build(model(), EMOTIONS, num_frames=4, seed=1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(target, chosen(run_config(tmp_path)))
    assert "/step_00000001-g1-" in str(caught.value)
    assert ": expected the weights of this model, got others (" in str(caught.value)
    assert "Evaluate it with the configuration it was trained with." in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "share"),
    [(1, None, 48), (4, None, 12), (4, 12, 12), (4, 5, 4), (1, 12, 12), (3, 12, 8), (2, 99, 24), (48, 7, 1), (1, 7, 7)],
)
def test_a_rank_takes_at_most_the_micro_batch_at_once(
    tmp_path: Path, ranks: int, micro_batch: int | None, share: int
) -> None:
    config = run_config(tmp_path, batch=48, micro_batch=micro_batch)
    assert config.share(World(size=ranks)) == share


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch", "share", "times"),
    [
        (46, 2, 8, 8, 3),
        (46, 2, 23, 23, 1),
        (46, 2, 22, 12, 2),
        (46, 1, 8, 8, 6),
        (26, 2, 5, 5, 3),
        (46, 23, 1, 1, 2),
    ],
)
def test_a_micro_batch_that_does_not_divide_the_share_leaves_a_smaller_last_one(
    tmp_path: Path, batch: int, ranks: int, micro_batch: int, share: int, times: int
) -> None:
    config = run_config(tmp_path, batch=batch, micro_batch=micro_batch)
    found = config.share(World(size=ranks))
    assert (found, accumulation(batch, world_size=ranks, micro_batch=found)) == (share, times)
    assert times == -(-(batch // ranks) // micro_batch)  # no more of them than have to be


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"micro_batch": -1}, "micro_batch: expected at least 1, got -1"),
        ({"fold": 0}, "fold: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"rank_mean": 1}, "rank_mean: expected at least 2 ranks, got 1"),
        ({"val_share": 1.0}, "val_share: expected a share between 0 and 1, got 1.0"),
        ({"model": CnnConfig()}, "data.size: expected 32 to 56 pixels with model.name=cnn, got 224. Set data.size=44"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        run_config(tmp_path, **change)
    assert said in str(caught.value)


def test_problems_of_all_parts_come_at_once() -> None:
    plain = {"run": 3, "epochs": "1e2", "data": {"shard": "x"}, "model": {"name": "dfer_clp"}, "optim": {"name": "sgd"}}
    with pytest.raises(ConfigProblem) as caught:
        from_plain(RunConfig, plain)
    for said in (
        "run: expected text, got 3",
        "epochs: expected a whole number, got '1e2' (str)",
        "data.shard: unknown key. Did you mean 'shards'?",
        "data.shards: required, but missing",
        "model.name: unknown 'dfer_clp'. Did you mean 'dfer_clip'",
        "optim.groups: required, but missing",
    ):
        assert said in str(caught.value)


def shards(folder: Path, *, keys: str = "12") -> DataConfig:
    """One clip a fold; sampled and sized for the tiny towers."""
    write_shards(folder, {f"fold_{k}": [[Clip(key=key)]] for k, key in enumerate(keys, start=1)})
    return DataConfig(shards=str(folder), workers=0, frames=2, size=64)


def test_a_fold_that_is_not_there(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", data=shards(tmp_path / "shards"))
    with pytest.raises(UsageError, match=r"--only: expected some of fold_1, fold_2, got fold_6\. Correct --only"):
        crossval(config, World(), only=["fold_6"])


def test_folds_do_not_go_into_the_folder_of_a_single_run(tmp_path: Path) -> None:
    config = run_config(tmp_path, data=shards(tmp_path / "shards"))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError) as caught:
        crossval(config, World())
    assert str(caught.value) == (
        f"{tmp_path}: expected a folder for all parts, got the run of a single one. Choose another one with run=FOLDER."
    )


def test_weights_as_they_are_are_not_evaluated_into_a_training_run(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(UsageError) as caught:
        evaluate_run(run_config(tmp_path), World(), trained=False)
    assert f"got a training run. Evaluate that with `dfer evaluate {tmp_path}`" in str(caught.value)


def test_the_evaluation_of_untrained_weights_does_not_pass_for_a_finished_training(tmp_path: Path) -> None:
    confusion = tuple(tuple(int(i == j) for j in range(7)) for i in range(7))
    result = fold_result(
        scores(confusion),
        dataset="dfew",
        method="dfer_clip",
        fold=1,
        num_folds=5,
        train_partitions=("fold_2",),
        test_partitions=("fold_1",),
        classes=BASIC7,
        selection="last",
        step=0,
        epoch=0,
        seed=1,
        checkpoint="openai",
        protocol=Protocol(num_frames=16, size=224, normalisation="none", augment="none"),
        manifest_sha256="0" * 64,
        finished="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        epochs=0,
        complete=True,
    )
    config = run_config(tmp_path / "run")
    save_result(result, Folder(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(UsageError, match="got the evaluation of a model that was not trained here"):
        train(config, World())


def test_switching_the_engine_keeps_its_other_settings() -> None:
    overrides = ["engine.clip_norm=2.0", "engine.precision=bf16", "engine.name=ddp"]
    found = load([Path(__file__).parents[3] / "configs" / "demo.yaml"], RunConfig, overrides)
    assert found.engine == EngineConfig(name="ddp", precision="bf16", clip_norm=2.0)


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def small(home: Path, data: DataConfig, **changes: Any) -> RunConfig:
    """A run of one step."""
    tiny = replace(model(), towers=TowersConfig(arch="tiny-conv-64"))
    return run_config(home, **{"data": data, "model": tiny, "batch": 1, **changes})


def heads(*folders: Path) -> list[str]:
    """How messages name the manifests of shard folders whose hashes were computed by the reader of the format."""
    return [sha256(to_json(Store(str(folder)).manifest)).hexdigest()[:12] for folder in folders]


@pytest.mark.slow("trains a run and opens it six times")
def test_the_shards_of_a_run_may_move_but_not_change(tmp_path: Path, alone: World) -> None:
    plain = small(tmp_path / "run", shards(tmp_path / "a"))
    result = train(plain, alone)
    moved = replace(plain, data=replace(plain.data, shards=str(tmp_path / "moved")))
    others = replace(plain, data=shards(tmp_path / "b", keys="34"))
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    before = (tmp_path / "run" / RESULT).read_text()

    def refused(work: Callable[[], object]) -> None:
        with pytest.raises(CheckpointError) as caught:
            work()
        first, second = heads(tmp_path / "a", tmp_path / "b")
        assert str(caught.value) == (
            f"{plain.run}: expected the shards it was started with, manifest sha256 {first}..., got {second}... in "
            f"{tmp_path / 'b'}. Set data.shards to those, or start a new run with run=FOLDER."
        )

    refused(lambda: train(others, alone))
    assert (
        evaluate_run(others, alone, trained=True).trained is not None
    )  # a second result: tests/unit/jobs/test_other.py
    assert (tmp_path / "run" / RESULT).read_text() == before
    assert train(moved, alone) == result
    assert evaluate_run(moved, alone, trained=True).confusion == result.confusion
    (tmp_path / "run" / RESULT).unlink()
    refused(lambda: train(others, alone))
    assert load([tmp_path / "run" / "config.yaml"], RunConfig) == moved
    assert train(moved, alone).manifest_sha256 == result.manifest_sha256


@pytest.mark.parametrize("change", [{"fold": 2}, {"select": "best_on_test"}, {"seed": 5}], ids=str)
def test_a_trained_run_is_evaluated_as_it_was_trained(tmp_path: Path, alone: World, change: dict[str, Any]) -> None:
    plain = small(tmp_path / "run", shards(tmp_path / "shards"))
    train(plain, alone)
    before = (tmp_path / "run" / RESULT).read_text()
    key, value = next(iter(change.items()))
    with pytest.raises(CheckpointError) as caught:
        evaluate_run(replace(plain, **change), alone, trained=True)
    assert f"1 changed keys ({key} was {getattr(plain, key)!r}, now {value!r})" in str(caught.value)
    assert (tmp_path / "run" / RESULT).read_text() == before
    evaluate_run(replace(plain, eval_batch=3), alone, trained=True)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 5}, {"fold": 9}, {"engine": EngineConfig(precision="fp16")}, {"data": DataConfig(shards="nowhere")}],
    ids=str,
)
def test_a_mistake_does_not_lock_the_folder(tmp_path: Path, alone: World, wrong: dict[str, Any]) -> None:
    plain = small(tmp_path / "run", shards(tmp_path / "shards"))
    with pytest.raises(DferError):
        train(replace(plain, **wrong), alone)
    assert not (tmp_path / "run").exists()
    assert train(plain, alone).step == 1


@pytest.mark.parametrize(
    ("batch", "micro_batch", "said"),
    [
        (7, None, "batch: expected a multiple of 2 ranks, got 7. Set batch to 6 or 8"),
        (1, None, "batch: expected a multiple of 2 ranks, got 1. Set batch to 2"),
        (7, 3, "batch: expected a multiple of 2 ranks, got 7. Set batch to 6 or 8"),
    ],
)
def test_a_batch_that_the_ranks_cannot_share(tmp_path: Path, batch: int, micro_batch: int | None, said: str) -> None:
    config = small(tmp_path / "run", shards(tmp_path / "shards"), batch=batch, micro_batch=micro_batch)
    with pytest.raises(ConfigProblem) as caught:
        train_loader(config, open_fold(config), World(rank=1, size=2))
    assert str(caught.value) == said


def test_a_trained_run_needs_its_first_weights_no_more(tmp_path: Path, alone: World) -> None:
    """Evaluated, predicted with and continued although the files it started from are gone."""
    home, gone = tmp_path / "run", str(tmp_path / "gone.pt")
    plain = small(home, shards(tmp_path / "shards"))
    result = train(plain, alone)
    lost = replace(plain.model, towers=replace(plain.model.towers, pretrained=gone))
    config = replace(plain, model=lost)
    (home / "config.yaml").write_text(to_yaml(config))
    again = evaluate_run(config, World(), trained=True)
    assert (again.confusion, again.checkpoint) == (result.confusion, result.checkpoint)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        cv2.imwrite(str(pictures / f"{number}.png"), np.full((64, 64, 3), 90 * number, np.uint8))
    first, second = (list(predict(chosen, [pictures], alone)) for chosen in (config, plain))
    assert first == second and isinstance(first[0][1], dict)
    (home / RESULT).unlink()
    assert train(config, alone).step == result.step
    # Untrained, the file is what is asked for.
    with pytest.raises(CheckpointError, match=r"gone\.pt: expected a file of weights, got no such file"):
        train(replace(config, run=str(tmp_path / "fresh")), alone)


def test_prediction_goes_clip_by_clip_and_names_the_bad_ones(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path / "run", shards(tmp_path / "shards"))
    train(config, alone)
    clips = [tmp_path / name for name in ("a", "b", "c", "d", "e")]
    for number, clip in enumerate(clips):
        clip.mkdir()
        cv2.imwrite(str(clip / "1.png"), np.full((64, 64, 3), 40 * number, np.uint8))
    (clips[1] / "1.png").write_bytes(b"")
    (clips[3] / "2.gif").write_bytes(b"GIF")
    capsys.readouterr()
    table = tmp_path / "answers.csv"
    whole = [clip for clip in clips if clip.name in "ace"]
    assert main(["predict", config.run, *map(str, clips), "--csv", str(table)]) == 3
    told = capsys.readouterr()
    assert [line.split("  ")[0] for line in told.out.splitlines()] == list(map(str, whole))
    rows = table.read_text().splitlines()
    assert rows[0].startswith("clip,predicted,") and [row.split(",")[0] for row in rows[1:]] == list(map(str, whole))
    first, second, last = told.err.splitlines()
    assert first.startswith(f"warning: {clips[1]}/1.png: expected ") and ", got empty. " in first
    assert second.startswith(f"warning: {clips[3]}: expected ") and "got pictures of a kind that is not read" in second
    assert last == (
        f"error: predict: expected to read all 5 clips, got 2 that cannot be read: {clips[1]}, {clips[3]}. "
        "Mend or leave out those; the others were answered."
    )
    # Answers do not depend on which clips were bad.
    assert main(["predict", config.run, *map(str, whole), "--csv", str(tmp_path / "again.csv")]) == 0
    assert (tmp_path / "again.csv").read_text() == table.read_text()
    capsys.readouterr()
    # One clip alone: its own message, and no table is begun.
    assert main(["predict", config.run, str(clips[1]), "--csv", str(tmp_path / "none.csv")]) == 3
    assert (
        capsys.readouterr().err == f"error: {first.removeprefix('warning: ')}\n"
        and not (tmp_path / "none.csv").exists()
    )


def test_an_answer_is_there_before_the_next_clip_is_read(tmp_path: Path, alone: World) -> None:
    config = small(tmp_path / "run", shards(tmp_path / "shards"))
    train(config, alone)
    clips = [tmp_path / "a", tmp_path / "b"]
    clips[0].mkdir()
    cv2.imwrite(str(clips[0] / "1.png"), np.zeros((64, 64, 3), np.uint8))
    answers = predict(config, clips, alone)
    assert next(answers)[0] == clips[0]
    clips[0].rename(clips[1])
    assert isinstance(next(answers)[1], dict)


def test_a_result_says_what_the_manifest_says_of_its_clips(tmp_path: Path, alone: World) -> None:
    data = replace(shards(tmp_path / "shards"), frames=2, size=64)
    place = tmp_path / "shards" / "manifest.json"
    left_out = [{"key": key, "reason": "no folder"} for key in ("x", "y", "z")]
    place.write_text(
        json.dumps(json.loads(place.read_text()) | {"excluded": left_out, "options": {"generated": "seed 9"}})
    )
    config = run_config(tmp_path / "run", data=data, model=replace(model(), towers=TowersConfig(arch="tiny-conv-64")))
    evaluate_run(config, alone, trained=False)
    result = read_result(Folder(tmp_path / "run"))
    assert (result.excluded, result.generated) == (3, "seed 9")
    assert result.data == "generated faces in test's layout"


# --- going on after an evaluation, or differently


class StopAfter(Stop):
    """A stop that is asked for after some looks: one at the start, one after each step and each test batch."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    @property
    def requested(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self.request("the test")
        return bool(self.reason)


def several(home: Path, data: DataConfig, **changes: Any) -> RunConfig:
    """Two steps an epoch."""
    return small(home, data, **{"epochs": 3, "checkpoint": CheckpointConfig(keep_last=9), **changes})


def three_clips(folder: Path) -> DataConfig:
    write_shards(
        folder, {"fold_1": [[Clip(key="a", label=1)]], "fold_2": [[Clip(key="b", label=0), Clip(key="c", label=2)]]}
    )
    return DataConfig(shards=str(folder), workers=0, frames=2, size=64)


def stopped_at(config: RunConfig, world: World, looks: int) -> None:
    """After as many steps where nothing is evaluated."""
    with pytest.raises(StoppedError):
        train(config, world, StopAfter(looks))


def last_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    found = Checkpoints(Folder(config.run), world=World()).latest()
    assert found is not None
    return found.weights()


def same_end(one: RunConfig, other: RunConfig) -> bool:
    ours, theirs = last_weights(one), last_weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def contents(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.slow("two runs, stopped, evaluated and resumed")
@pytest.mark.parametrize("select", ["last", "best_on_test"])
def test_an_evaluation_of_a_stopped_run_does_not_end_it(tmp_path: Path, alone: World, select: str) -> None:
    data = three_clips(tmp_path / "shards")
    config = several(tmp_path / "run", data, select=select)
    straight = several(tmp_path / "straight", data, select=select)
    stopped_at(config, alone, 3 if select == "last" else 4)
    home = tmp_path / "run"
    before = contents(home)
    between = evaluate_run(config, alone, trained=True)
    step = 3 if select == "last" else 2
    assert (between.complete, between.step, between.epoch, between.epochs) == (False, step, 1, 3)
    stem = f"results/test-step_{step:08d}"
    written = {name: data for name, data in contents(home).items() if before.get(name) != data}
    assert {*written} == {f"{stem}.json", f"{stem}_predictions.csv"} and before.keys() <= contents(home).keys()
    assert not finished(Folder(home)) and read_result(Folder(home), f"{stem}.json") == between
    result = train(config, alone)
    assert (result.complete, result.epochs, result.changed) == (True, 3, ()) and finished(Folder(home))
    assert train(config, alone) == result
    expected = train(straight, alone)
    assert (result.step, result.confusion) == (expected.step, expected.confusion) and same_end(config, straight)
    # The finished run gives the same again, in the same file.
    names = {*contents(home)}
    again = evaluate_run(config, alone, trained=True)
    assert replace(again, finished=result.finished, seconds=result.seconds) == result and {*contents(home)} == names


def test_an_evaluation_beside_a_live_run_touches_nothing_of_it(tmp_path: Path, alone: World) -> None:
    """At work after the first epoch: its next record, checkpoint and result are written as if nobody had looked."""
    data = three_clips(tmp_path / "shards")
    config = several(tmp_path / "run", data, eval_every=1)
    seen: list[FoldResult] = []

    class Beside(StopAfter):
        @property
        def requested(self) -> bool:
            self._left -= 1
            if self._left == 0:
                end = time.monotonic() + 60
                while not committed(Folder(config.run)) and time.monotonic() < end:
                    time.sleep(0.01)  # it is written in the background
                before = contents(tmp_path / "run")
                seen.append(evaluate_run(config, alone, trained=True))
                after = contents(tmp_path / "run")
                changed = {name for name in after if before.get(name) != after[name]}
                assert {name for name in changed if not name.startswith("tensorboard/")} == {
                    "results/test-step_00000002.json",
                    "results/test-step_00000002_predictions.csv",
                }
            return False

    result = train(config, alone, Beside(5))
    assert [found.complete for found in seen] == [False] and result.complete
    straight = several(tmp_path / "straight", data, eval_every=1)
    train(straight, alone)
    assert same_end(config, straight)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["split"]) for r in records if r["kind"] == "eval"] == [(n, "test") for n in (2, 4, 6)]


def test_weights_as_they_are_are_not_evaluated_into_a_run_that_has_just_begun(tmp_path: Path, alone: World) -> None:
    """Before its first checkpoint, when it has a lease alone."""
    config = small(tmp_path / "run", shards(tmp_path / "shards"))
    Fence.take(Folder(config.run), processes=1)
    with pytest.raises(UsageError, match=r"got a training run\. Evaluate that with"):
        evaluate_run(config, alone, trained=False)
    assert not (tmp_path / "run" / RESULT).exists()


def test_validation_clips_are_named_as_such(tmp_path: Path, alone: World) -> None:
    write_shards(
        tmp_path / "shards", {"fold_1": [[Clip(key="a")]], "fold_2": [[Clip(key=key, subject=key) for key in "bcde"]]}
    )
    data = DataConfig(shards=str(tmp_path / "shards"), workers=0, frames=2, size=64)
    train(small(tmp_path / "run", data, select="best_on_val", val_share=0.5), alone)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {record["split"] for record in records if record["kind"] == "eval"} == {"validation"}


@pytest.mark.slow("trains a run up to five times")
@pytest.mark.parametrize(
    ("schedule", "stop"),
    [
        (ConstantScheduleConfig(), None),
        (StepScheduleConfig(milestones=(1, 2)), 3),
        pytest.param(ConstantScheduleConfig(), 3, marks=pytest.mark.long),
        pytest.param(StepScheduleConfig(milestones=(1, 2)), None, marks=pytest.mark.long),
        pytest.param(ExponentialScheduleConfig(rate=0.5), 3, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_epochs_may_grow(tmp_path: Path, alone: World, schedule: ScheduleConfig, stop: int | None) -> None:
    """After the end or before it; the end is that of a run that was to have as many from the beginning."""
    data = three_clips(tmp_path / "shards")
    config = several(tmp_path / "run", data, epochs=2, schedule=schedule)
    if stop:
        stopped_at(config, alone, stop)
    else:
        train(config, alone)
        old = (tmp_path / "run" / RESULT).read_bytes()
        stopped_at(replace(config, epochs=4), alone, 1)
        assert not finished(Folder(config.run)) and (tmp_path / "run" / RESULT).read_bytes() == old
        assert not evaluate_run(replace(config, epochs=4), alone, trained=True).complete
        assert (tmp_path / "run" / RESULT).read_bytes() == old
    longer = replace(config, epochs=4)
    result = train(longer, alone)
    assert (result.epochs, result.epoch, result.step, result.complete) == (4, 4, 8, True)
    assert result.changed == (Change(key="epochs", was=2, now=4, step=stop or 4),)
    straight = replace(longer, run=str(tmp_path / "straight"))
    assert train(straight, alone).changed == () and same_end(longer, straight)
    assert train(longer, alone) == result and evaluate_run(longer, alone, trained=True).changed == result.changed
    with pytest.raises(CheckpointError, match=r"epochs was 4, now 2: it may only be raised"):
        train(config, alone)


def test_epochs_do_not_grow_under_a_schedule_that_depends_on_their_number(tmp_path: Path, alone: World) -> None:
    config = small(tmp_path / "run", shards(tmp_path / "shards"), schedule=CosineScheduleConfig())
    train(config, alone)
    before = contents(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        train(replace(config, epochs=2), alone)
    assert str(caught.value) == (
        f"{config.run}: expected the configuration it was started with, got 1 changed keys (epochs was 1, now 2: the "
        "rates of the cosine schedule depend on the number of epochs at every step). "
        "Choose another folder with run=FOLDER, or change them back."
    )
    assert contents(tmp_path / "run") == before


def test_a_finished_run_without_checkpoints_does_not_begin_anew(tmp_path: Path, alone: World) -> None:
    config = small(tmp_path / "run", shards(tmp_path / "shards"))
    train(config, alone)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = contents(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        train(replace(config, epochs=2), alone)
    assert str(caught.value) == (
        f"{config.run}: expected a checkpoint to resume from, got only results/test.json of an earlier training. "
        "Put its checkpoints back, or start a new run with run=FOLDER."
    )
    assert contents(tmp_path / "run") == before


@pytest.mark.slow("a run that is stopped and resumed four times")
@pytest.mark.parametrize("pending", [False, True])
def test_evaluations_and_the_bad_share_may_change_with_a_note(tmp_path: Path, alone: World, pending: bool) -> None:
    """Also where the checkpoint says that an evaluation is still to come, and there are none any more."""
    data = three_clips(tmp_path / "shards")
    config = several(tmp_path / "run", data, eval_every=1)
    stopped_at(config, alone, 2 if pending else 4)
    if pending:
        (state,) = (tmp_path / "run").glob("checkpoints/step_00000002-*/state.json")
        assert json.loads(state.read_text())["training"]["evaluate"] is True
    other = replace(config, eval_every=None, data=replace(data, max_bad_share=0.5))
    stopped_at(other, alone, 1)
    last = replace(other, eval_every=2)
    result = train(last, alone)
    first = 2 if pending else 3
    assert [str(change) for change in result.changed] == [
        f"eval_every from 1 to none at step {first}",
        f"data.max_bad_share from 0 to 0.5 at step {first}",
        f"eval_every from none to 2 at step {first + 1}",
    ]
    assert read_result(Folder(config.run)).changed == result.changed
    with pytest.raises(CheckpointError, match=r"data.max_bad_share was 0.5, now 0.0: it may only be raised"):
        train(replace(last, data=data), alone)
    # Nothing is left to be trained otherwise, so the record of how it was trained stands.
    before = (tmp_path / "run" / "config.yaml").read_text()
    assert train(replace(last, eval_every=7), alone) == result
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_run_of_an_older_version_goes_on_and_notes_changes(tmp_path: Path, alone: World) -> None:
    """Its checkpoints do not say under which settings they were written; its folder does."""
    config = several(tmp_path / "run", three_clips(tmp_path / "shards"))
    stopped_at(config, alone, 3)
    for folder in (tmp_path / "run").glob("checkpoints/*"):
        plain = json.loads((folder / "state.json").read_text())
        del plain["settings"], plain["changed"]
        (folder / "state.json").write_text(json.dumps(plain))
        manifest = json.loads((folder / "manifest.json").read_text())
        data = (folder / "state.json").read_bytes()
        manifest["files"]["state.json"] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert train(replace(config, eval_every=2), alone).changed == (Change(key="eval_every", was=None, now=2, step=3),)
