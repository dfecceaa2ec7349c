"""Exported runs and imported files as saved models, and what takes a saved model: evaluate, predict, start."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from dfer.__main__ import main
from dfer.config_files import names
from dfer.data.config import DataConfig
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World, process_group
from dfer.emotions import BASIC7, label_set
from dfer.errors import CheckpointError
from dfer.evaluation.results import read_result
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.export import export
from dfer.jobs.importing import import_model
from dfer.jobs.initial import Initial, refuse_drawn
from dfer.jobs.predict import predict
from dfer.jobs.saved import input_of, recipe_of, run_of
from dfer.jobs.train import train
from dfer.models.build import build
from dfer.models.config import DferClipConfig, LinearProbeConfig, ZeroShotConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.saved import Origin, SavedConfig, SavedModel, open_saved
from dfer.models.towers import Towers
from dfer.recognition import ClipBatch
from dfer.storage import Folder
from dfer.training.config import GroupConfig, SgdConfig
from dfer.yaml_text import parse
from tests.unit.data.shardkit import Clip, jpeg, write_shards

Capture = pytest.CaptureFixture[str]
RATES = {"image": 0.01, "temporal": 0.01, "prompts": 0.01}
METHODS = sorted(name.partition("/")[2] for name in names() if name.startswith("methods/"))
FOLDS = {f"fold_{k}": [[Clip(key=f"{k}{i}", label=i, frames=[jpeg(36 * i + k)] * 3) for i in range(7)]] for k in (1, 2)}


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_shards(tmp_path / "shards", FOLDS)
    return DataConfig(shards=str(tmp_path / "shards"), workers=0, frames=2, size=64)


def clip_method() -> DferClipConfig:
    temporal = TemporalConfig(depth=1, heads=2, head_dim=16, mlp_dim=48)
    return DferClipConfig(towers=TowersConfig(arch="tiny-conv-64"), temporal=temporal, num_contexts=2)


def run_config(home: Path, data: DataConfig, **changes: Any) -> RunConfig:
    optim = SgdConfig(groups={name: GroupConfig(lr=rate) for name, rate in RATES.items()})
    values = {"run": str(home), "epochs": 2, "batch": 4, "data": data, "model": clip_method(), "optim": optim}
    return RunConfig(**{**values, **changes})


def opened(out: object) -> SavedModel:
    found = open_saved(str(out))
    assert found is not None
    return found


@pytest.mark.slow("trains, exports, evaluates and predicts through the command line")
def test_an_exported_run_gives_its_own_score_and_answers(
    tmp_path: Path, data: DataConfig, alone: World, capsys: Capture
) -> None:
    """Through the command line, from a moved folder, when the run is gone."""
    config = run_config(tmp_path / "run", data)
    result = train(config, alone)
    own = read_predictions(tmp_path / "run")
    assert main(["export", config.run, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"out: written, step 2 (last), WAR {100 * result.war:.2f}, UAR {100 * result.uar:.2f}" in said
    assert main(["export", config.run, str(tmp_path / "out")]) == 0 and "already there" in capsys.readouterr().out
    found = opened(tmp_path / "out").config
    assert (found.origin.source, found.origin.fold, found.origin.epoch) == (f"{tmp_path.name}/run", 1, 2)
    assert found.score is not None and (found.score.war, found.score.uar) == (result.war, result.uar)
    assert "shards" not in found.data and "run" not in found.recipe and found.recipe["epochs"] == 2
    pictures = tmp_path / "clip"
    pictures.mkdir()
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), np.full((80, 64, 3), 90 * number, np.uint8))
    first = list(predict(config, [pictures], alone))
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "gone")
    again = ["evaluate", f"{tmp_path}/moved", f"data.shards={data.shards}", f"run={tmp_path}/again", "data.workers=0"]
    assert main(again) == 0
    scored = read_result(Folder(tmp_path / "again"))
    assert (scored.confusion, scored.war, scored.uar) == (result.confusion, result.war, result.uar)
    assert (scored.selection, scored.step, scored.complete) == ("last", 0, True)
    assert scored.start == f"{tmp_path}/moved, saved model, weights sha256 {found.sha256}"
    assert read_predictions(tmp_path / "again") == own
    saved = opened(tmp_path / "moved")
    here = run_of(saved, overrides=["data.shards=nowhere"])
    assert list(predict(here, [pictures], alone, saved=saved)) == first
    assert main(["predict", f"{tmp_path}/moved", str(pictures)]) == 0
    assert f"{pictures}  {max(first[0][1], key=first[0][1].get)} " in capsys.readouterr().out  # type: ignore[union-attr,arg-type]


def read_predictions(home: Path) -> str:
    return (home / "results" / "test_predictions.csv").read_text()


@pytest.mark.slow("two runs of two epochs, three exports")
def test_the_last_and_the_best_checkpoint(tmp_path: Path, data: DataConfig, alone: World) -> None:
    config = run_config(tmp_path / "run", data, select="best_on_test", eval_every=1)
    result = train(config, alone)
    best = export(config, Folder(tmp_path / "best"), choice="best").config
    last = export(config, Folder(tmp_path / "last"), choice="last").config
    assert (best.origin.step, best.origin.selection) == (result.step, "best_on_test")
    assert (last.origin.step, last.origin.selection) == (2, "last")
    assert best.score is not None and best.score.war == result.war
    assert last.score is not None and result.last is not None and result.last.step == 2
    assert (last.score.war, last.score.uar) == (result.last.scores.war, result.last.scores.uar)
    assert best.score.interval is not None and best.score.interval[0] <= result.war <= best.score.interval[1]
    assert export(config, Folder(tmp_path / "best")).new is False
    plain = run_config(tmp_path / "plain", data)
    train(plain, alone)
    with pytest.raises(CheckpointError, match=r"expected a best checkpoint, got none: it was .*Give --checkpoint last"):
        export(plain, Folder(tmp_path / "none"), choice="best")
    with pytest.raises(CheckpointError, match="expected a checkpoint selected by `last`, got none"):
        export(run_config(tmp_path / "untrained", data), Folder(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_run_on_features_is_exported_with_its_tower(tmp_path: Path, data: DataConfig, alone: World) -> None:
    """On another machine neither the tower's file nor the features are needed."""
    towers = Towers(TowersConfig(arch="tiny-conv-64"))
    names = towers.state_dict().items()
    torch.save({name.removeprefix("text."): value for name, value in names}, tmp_path / "clip.pt")
    model = LinearProbeConfig(towers=TowersConfig(arch="tiny-conv-64", pretrained=str(tmp_path / "clip.pt")))
    still = replace(
        data,
        features=str(tmp_path / "features"),
        augment=DferClipAugment(crop=False, flip=0.0),
        train_frames="middle",
    )
    optim = SgdConfig(groups={"head": GroupConfig(lr=0.1)})
    config = run_config(tmp_path / "run", still, model=model, optim=optim)
    result = train(config, alone)
    export(config, Folder(tmp_path / "out"))
    for name in ("clip.pt", "run", "features"):
        (tmp_path / name).rename(tmp_path / f"gone_{name}")
    saved = opened(tmp_path / "out")
    here = run_of(saved, overrides=[f"data.shards={data.shards}", f"run={tmp_path}/again", "data.workers=0"])
    assert here.data.features is None
    assert evaluate_run(here, alone, trained=False).confusion == result.confusion


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was exported, on the shards that `data` gives."""
    home = tmp_path_factory.mktemp("exported")
    write_shards(home / "shards", FOLDS)
    config = run_config(home / "run", DataConfig(shards=str(home / "shards"), workers=0, frames=2, size=64))
    with process_group(World()):
        train(config, World())
    export(config, Folder(home / "out"))
    return home / "out"


def test_a_snapshot_of_the_hub_is_a_saved_model(tmp_path: Path, original: Path, data: DataConfig, alone: World) -> None:
    """Its files are links into a folder of blobs, as `snapshot_download` leaves them; the hub reads the card."""
    hub = tmp_path / "models--me--faces"
    (hub / "snapshots" / "0123abc").mkdir(parents=True)
    (hub / "blobs").mkdir()
    for number, path in enumerate(sorted(original.iterdir())):
        shutil.copy(path, hub / "blobs" / f"{number:040x}")
        (hub / "snapshots" / "0123abc" / path.name).symlink_to(f"../../blobs/{number:040x}")
    saved = opened(hub / "snapshots" / "0123abc")
    config = run_of(saved, overrides=[f"data.shards={data.shards}", f"run={tmp_path}/again", "data.workers=0"])
    assert saved.config.score is not None
    assert evaluate_run(config, alone, trained=False).war == saved.config.score.war
    cards = pytest.importorskip("huggingface_hub", reason="the hub's client comes with transformers")
    found = cards.ModelCard.load(original / "README.md").data
    assert (found.library_name, found.pipeline_tag, found.license) == ("dfer", "video-classification", "other")
    (war, uar) = found.eval_results
    assert (war.metric_value, war.dataset_split) == (round(saved.config.score.war, 6), "fold 1 of published")
    assert uar.metric_type == "recall"


def test_an_unfinished_training_is_exported_as_one(tmp_path: Path, original: Path, data: DataConfig) -> None:
    """Not evaluated either: the data set is read from the checkpoint."""
    shutil.copytree(original.parent / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "results")
    origin = export(run_config(tmp_path / "run", data, epochs=5), Folder(tmp_path / "out")).config.origin
    assert (origin.dataset, origin.epoch, origin.epochs, origin.complete) == ("test", 2, 5, False)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| selection | the newest checkpoint; incomplete: epoch 2 of 5 |" in text
    assert "| trained on | test, fold 1 of published |" in text
    whole = opened(original).config.origin
    assert (whole.epochs, whole.complete) == (2, True)


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.temporal.depth=2", "expected model.temporal.depth = 1, got 2. Leave these keys out"),
        ("model.towers.arch=tiny-vit-64", "expected model.towers.arch = 'tiny-conv-64', got 'tiny-vit-64'"),
        ("data.frames=4", "expected data.frames = 2, got 4"),
        ("data.size=32", "expected data.size = 64, got 32"),
        ("model={name: linear_probe}", "expected model.name = 'dfer_clip', got 'linear_probe'"),
    ],
)
def test_another_method_backbone_or_input_is_refused(exported: Path, override: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        run_of(opened(exported), overrides=["data.shards=x", override])
    assert said in str(caught.value) and caught.value.exit_code == 5


def test_a_method_of_a_file_is_refused_too(exported: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected model\.name = 'dfer_clip', got 'linear_probe'"):
        run_of(opened(exported), ["methods/linear_probe"], ["data.shards=x"])
    assert run_of(opened(exported), ["sets/dfew"]).data.shards == "data/dfew"


def test_it_answers_its_own_classes_on_other_data(tmp_path: Path, exported: Path, alone: World) -> None:
    """The set's list is not taken, clips of other classes are left out, and the shards may lack some of the model's."""
    write_shards(tmp_path / "other", FOLDS, classes=(*BASIC7[:6], "contempt"))
    overrides = [f"run={tmp_path}/again", "data.workers=0", f"data.shards={tmp_path}/other", "data.frames=2"]
    config = run_of(opened(exported), ["sets/mafw"], overrides)
    for _ in range(2):  # the second time there is a result
        found = evaluate_run(config, alone, trained=False)
        assert (found.classes, found.count) == (BASIC7, (1, 1, 1, 1, 1, 1, 0))


def test_classes_that_it_was_not_trained_on_are_refused(tmp_path: Path, exported: Path, alone: World) -> None:
    overrides = [f"run={tmp_path}/again", "data.workers=0"]
    write_shards(tmp_path / "other", FOLDS, classes=(*BASIC7[:6], "contempt"))
    six = [f"data.classes=[{', '.join(BASIC7[:5])}, contempt]", f"data.shards={tmp_path}/other"]
    config = run_of(opened(exported), overrides=[*overrides, *six])
    with pytest.raises(CheckpointError) as caught:
        evaluate_run(config, alone, trained=False)
    said = str(caught.value)
    assert "expected all weights of the model that is evaluated, got none for prompts.contexts of contempt." in said
    model = build(clip_method(), label_set("basic7"), num_frames=2, seed=0)
    shared = Initial(model=model, fresh_classes=("contempt",))
    with pytest.raises(CheckpointError, match="a model that was trained on all classes, got none for contempt"):
        refuse_drawn(config, shared)  # of a method without weights of its classes
    refuse_drawn(replace(config, model=ZeroShotConfig()), shared)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow("an evaluation and a report through the command line")
def test_an_unknown_fold_of_the_same_data_is_told_everywhere(
    tmp_path: Path, data: DataConfig, exported: Path, capsys: Capture
) -> None:
    plain = parse((exported / "config.yaml").read_bytes())
    plain["origin"] |= {"fold": None, "sets": [], "manifest_sha256": ""}
    (exported / "config.yaml").write_text(yaml.safe_dump(plain))
    run = tmp_path / "again"
    words = ["evaluate", str(exported), f"data.shards={data.shards}", f"run={run}", "data.workers=0"]
    assert main(words) == 0
    said = "test clips may have been trained on: the weights were trained on test, fold unknown"
    assert f"warning: {said}\n" in capsys.readouterr().err
    assert read_result(Folder(run)).remark == said
    assert main(["report", str(run)]) == 0
    assert said in (run / "report" / "report.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_evaluated_on_every_set(name: str) -> None:
    """A set's values that belong to another input recipe than the model's do not count."""
    config = load_run([f"methods/{name}", "sets/dfew"])
    emotions = label_set("affectnet8")
    saved = SavedModel(
        folder=Folder("models/x"),
        config=SavedConfig(
            model=config.model,
            classes=emotions.names,
            normalisation="",
            data=input_of(config, emotions.names),
            recipe=recipe_of(config),
            sha256="",
            bytes=0,
            origin=Origin(made_by="import", source="", source_sha256=""),
        ),
    )
    for each in ("dfew", "ferv39k", "affectnet7", "mafw"):
        found = run_of(saved, [f"sets/{each}"], [f"data.frames={config.data.frames}"])
        assert found.data.augment.name == config.data.augment.name
        assert found.data.classes == emotions.names


def test_a_training_starts_from_it_but_not_on_its_test_clips(
    tmp_path: Path, data: DataConfig, exported: Path, alone: World
) -> None:
    model = replace(clip_method(), start=str(exported), temporal=TemporalConfig(depth=2, heads=2, head_dim=16))
    result = train(run_config(tmp_path / "next", data, model=model), alone)
    assert result.start.startswith(f"{exported}, saved model, weights sha256 ")
    with pytest.raises(CheckpointError, match="saw none of the test clips of fold 2, got one trained on fold_2"):
        train(run_config(tmp_path / "leak", data, model=model, fold=2), alone)
    other = replace(model, towers=TowersConfig(arch="tiny-vit-64"))
    with pytest.raises(CheckpointError, match="expected towers of tiny-vit-64, got tiny-conv-64"):
        train(run_config(tmp_path / "other", data, model=other), alone)


def test_commands_say_what_is_missing(tmp_path: Path, exported: Path, data: DataConfig, capsys: Capture) -> None:
    def said(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        return main([str(word) for word in words]), capsys.readouterr().err

    assert said("evaluate", exported, f"run={tmp_path}/x") == (
        2,
        f"error: {exported}: data.shards: required, but missing. Add it to the file or as data.shards=VALUE\n",
    )
    code, text = said("evaluate", exported, f"data.shards={data.shards}", "--out", tmp_path / "x")
    assert code == 2 and "--out: expected a run folder to evaluate, got a saved model. Give the folder as run=" in text
    code, text = said("export", exported, tmp_path / "x")
    assert code == 2 and "expected the run folder of one fold, got a saved model. It is exported already" in text
    (exported / "README.md").unlink()
    for words in (("predict", exported, tmp_path), ("evaluate", exported)):
        code, text = said(*words)
        assert code == 5 and "README.md: expected the model's card" in text
    for words, expected in (
        (
            ("import", "x.pth", "--method", "dfer_clip", "--dataset", "dfew"),
            "OUT: expected a folder to write, got none",
        ),
        (("import", "x.pth", "a", "--method", "towers", "b"), "OUT: expected a folder to write, got a and b. Give one"),
        (("import", "x.pth", "o", "--method", "dfer_clip"), "--dataset: expected one for --method dfer_clip, got none"),
        (("import", "x.pth", "o", "--method", "towers"), "--arch: expected one for --method towers, got none"),
        (("import", "x.pth", "o", "--method", "exp_clip", "--fold", "1"), "fold: expected none with --method exp_clip"),
        (("import", "x.pth", "o", "--method", "dfer_clip", "--dataset", "dfew", "--arch", "a"), "arch: expected none"),
        (("import", "x.pth", "o", "--method", "linear_probe", "--dataset", "dfew"), "expected a method with published"),
        (("import", "x.pth", "o", "--method", "dfer_clop", "--dataset", "dfew"), "Did you mean 'methods/dfer_clip"),
    ):
        code, text = said(*words)
        assert code == 2 and expected in text, text
    code, text = said("import", tmp_path / "x.pth", "o", "--method", "dfer_clip", "--dataset", "dfew")
    assert code == 5 and "expected a file of weights, got no such file" in text


# --- files of others


class Recorder:
    """What the released script pickles beside the weights; pickled as a call."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (self.command,)


NEW = "model.temporal.heads=2 model.temporal.head_dim=16 model.temporal.mlp_dim=48 data.frames=2 data.size=64"
SMALL = [*NEW.split(), "model.towers.arch=ARCH", "model.towers.pretrained=null"]


def quick_arch(folder: Path) -> str:
    """A small ViT with OpenAI's activation."""
    path = folder / "quick.json"
    vision = {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def small(folder: Path) -> list[str]:
    return [word.replace("ARCH", quick_arch(folder)) for word in SMALL]


def released(folder: Path, **beside: Any) -> tuple[Path, nn.Module]:
    """A file in the layout of the release, made of one of our models by the inverse of its names; and the model."""
    temporal = TemporalConfig(depth=1, heads=2, head_dim=16, mlp_dim=48)
    model: Any = build(
        DferClipConfig(towers=TowersConfig(arch=quick_arch(folder)), temporal=temporal),
        label_set("basic7"),
        num_frames=2,
        seed=5,
    )
    own = model.state_dict()
    clip = {k.removeprefix("towers.").removeprefix("text."): v for k, v in own.items() if k.startswith("towers.")}
    state: dict[str, Tensor] = {f"clip_model_.{name}": value for name, value in clip.items()}
    for name, value in clip.items():
        if name.startswith("visual."):
            state[name.replace("visual.", "image_encoder.", 1)] = value
        elif not name.startswith("token_embedding"):
            state[f"text_encoder.{name}"] = value
    layer = "temporal_net.temporal_transformer.layers.0"
    names = {"norm1": "0.fn.norm", "attention.qkv": "0.fn.fn.to_qkv", "attention.out": "0.fn.fn.to_out.0"}
    names |= {"norm2": "1.fn.norm", "mlp.0": "1.fn.fn.net.0", "mlp.2": "1.fn.fn.net.3"}
    for name, value in own.items():
        if name.startswith("temporal.blocks.0."):
            part, _, kind = name.removeprefix("temporal.blocks.0.").rpartition(".")
            state[f"{layer}.{names[part]}.{kind}"] = value
    tokens = torch.zeros(7, 77, dtype=torch.int64)
    tokens[:, : model.prompts.tokens.shape[1]] = model.prompts.tokens
    fixed = clip["token_embedding.weight"][tokens]
    state |= {
        "clip_model_.logit_scale": torch.tensor(4.6),
        "prompt_learner.ctx": own["prompts.contexts"],
        "prompt_learner.token_prefix": fixed[:, :1],
        "prompt_learner.token_suffix": fixed[:, 9:],
        "temporal_net.cls_token": own["temporal.token"][None],
        "temporal_net.pos_embedding": own["temporal.positions"][None],
    }
    path = folder / "DFEW-set1-model.pth"
    torch.save({"epoch": 50, "state_dict": {f"module.{k}": v for k, v in state.items()}, **beside}, path)
    return path, model


def test_a_published_checkpoint_is_imported_and_nothing_in_it_is_run(tmp_path: Path, alone: World) -> None:
    canary = tmp_path / "canary"
    path, theirs = released(tmp_path, recorder=Recorder(f"touch {canary}"), best_acc=torch.tensor(71.25))
    out = tmp_path / "out"
    taken = import_model(path, Folder(out), method="dfer_clip", dataset="DFEW", fold=1, overrides=small(tmp_path))
    assert taken.new and not canary.exists()
    saved = opened(out)
    origin = saved.config.origin
    assert (origin.selection, origin.fold, origin.dataset, origin.source) == ("best_on_test", 1, "dfew", path.name)
    assert saved.config.score is None and saved.config.texts is not None
    pictures = torch.randint(0, 255, (3, 2, 3, 64, 64), dtype=torch.uint8)
    batch = ClipBatch(frames=pictures, labels=torch.zeros(3).long(), index=torch.arange(3))
    with torch.no_grad():
        assert torch.equal(saved.recognizer().eval()(batch).logits, theirs.eval()(batch).logits)
    card = (out / "README.md").read_text()
    assert "file `DFEW-set1-model.pth`, sha256 `" in card and origin.source_sha256 in card
    again = import_model(path, Folder(out), method="dfer_clip", dataset="dfew", fold=1, overrides=small(tmp_path))
    assert again.new is False
    torch.load(path, weights_only=False)  # the canary can sing
    assert canary.exists()


def test_an_imported_fold_is_evaluated_on_its_own_test_clips(tmp_path: Path, alone: World) -> None:
    path, _ = released(tmp_path)
    import_model(path, Folder(tmp_path / "out"), method="dfer_clip", dataset="dfew", fold=1, overrides=small(tmp_path))
    write_shards(tmp_path / "shards", FOLDS)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps({**manifest, "dataset": "dfew"}))
    overrides = [f"data.shards={tmp_path}/shards", f"run={tmp_path}/run", "data.workers=0"]
    config = run_of(opened(tmp_path / "out"), ["sets/dfew"], overrides)
    assert evaluate_run(config, alone, trained=False).selection == "best_on_test"
    with pytest.raises(CheckpointError, match="saw none of the test clips of fold 2, got one trained on fold_2"):
        evaluate_run(replace(config, fold=2, run=str(tmp_path / "two")), alone, trained=False)


@pytest.mark.parametrize(
    ("dataset", "override", "said"),
    [
        ("mafw", "", "expected number of classes = 7, got 11"),
        ("dfew", "data.frames=3", "expected data.frames = 2, got 3"),
        ("dfew", "model.towers.arch=ViT-B-32-quickgelu", "tensors that fit the model"),
        ("dfew", "model.num_contexts=4", "expected model.num_contexts = 8, got 4"),
        ("dfew", "model.text=class_names", "Set model.text=class_descriptor."),
    ],
)
def test_what_the_file_was_not_trained_as_is_refused(tmp_path: Path, dataset: str, override: str, said: str) -> None:
    path, _ = released(tmp_path)
    overrides = [*small(tmp_path), *filter(None, [override])]
    with pytest.raises(CheckpointError) as caught:
        import_model(path, Folder(tmp_path / "out"), method="dfer_clip", dataset=dataset, overrides=overrides)
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_a_dry_run_lists_every_name_and_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    path, theirs = released(tmp_path)
    words = ["import", str(path), "--method", "dfer_clip", "--dataset", "dfew", "--dry-run", *small(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"takes {len(theirs.state_dict())} tensors of ")
    assert "  prompts.contexts [7, 8, 64]" in said
    assert "leaves out clip_model_.visual.proj: a second copy of image_encoder.proj, equal" in said
    assert {path.name for path in tmp_path.iterdir()} == {"quick.json", path.name}
    out = tmp_path / "out"
    assert main([*words[:6], str(out), *small(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{out}: written, {len(theirs.state_dict())} tensors; use it as dfer evaluate {out} sets/dfew, dfer predict, "
        f"or model.start={out}. Give --fold if you know it: without it nothing tells whether test clips were trained on"
    ]


def test_a_long_file_tells_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfer.jobs.importing.LONG_BYTES", 2**20)
    path, _ = released(tmp_path)
    told: list[str] = []
    import_model(
        path, Folder(tmp_path / "o"), method="dfer_clip", dataset="dfew", overrides=small(tmp_path), tell=told.append
    )
    assert told[0].startswith(f"reading {path}, ") and "read 100 %" in told and told[-1] == f"writing {tmp_path}/o"


def test_a_legacy_file_is_read_without_running_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path, theirs = released(tmp_path)
    whole = {**torch.load(path, weights_only=True), "recorder": Recorder(f"touch {canary}")}
    torch.save(whole, tmp_path / "old.t7", _use_new_zipfile_serialization=False)
    taken = import_model(tmp_path / "old.t7", None, method="dfer_clip", dataset="dfew", overrides=small(tmp_path))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in taken.weights.items())
    assert not canary.exists()


@pytest.mark.slow("starts the command that converts a file as a new program")
def test_what_cannot_be_read_safely_is_refused_with_the_one_command_that_converts_it(tmp_path: Path) -> None:
    path, theirs = released(tmp_path)
    legacy = tmp_path / "old file.t7"
    whole = torch.load(path, weights_only=True)
    torch.save(whole, legacy, _use_new_zipfile_serialization=False, pickle_protocol=4)
    with pytest.raises(CheckpointError) as caught:
        import_model(legacy, Folder(tmp_path / "o"), method="dfer_clip", dataset="dfew", overrides=small(tmp_path))
    said = str(caught.value)
    assert "got a bare pickle. It cannot be read without running it. Where you trust its author, convert it" in said
    command = shlex.split(said.partition("convert it: ")[2].removesuffix("."))
    assert command[0] == "python" and command[-1] == f"{legacy}.new.pth"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    taken = import_model(Path(f"{legacy}.new.pth"), None, method="dfer_clip", dataset="dfew", overrides=small(tmp_path))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in taken.weights.items())


def test_another_kind_of_file_is_refused_with_what_to_give(tmp_path: Path) -> None:
    torch.save({"mlp.weight": torch.ones(4096, 512)}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of the released DFER-CLIP code, got one without"):
        import_model(tmp_path / "head.pth", None, method="dfer_clip", dataset="dfew", overrides=small(tmp_path))
