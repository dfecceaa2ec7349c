"""The zero-shot suite: what it reads and refuses, features that are computed once, answers that are `zero_shot`'s."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import save_file

from dfer.__main__ import main
from dfer.config import ConfigProblem, from_plain, to_yaml
from dfer.data.config import DataConfig
from dfer.data.recipes import DferClipAugment
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, DataError, UsageError
from dfer.evaluation.results import read_result as read_fold
from dfer.interruption import Stop
from dfer.jobs import zeroshot as job
from dfer.jobs import zeroshot_features
from dfer.jobs.config import RunConfig
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.parts import Part, load_job, parts_in
from dfer.jobs.zeroshot_config import ZeroshotConfig
from dfer.jobs.zeroshot_features import Towers, clip_features
from dfer.jobs.zeroshot_scores import released_tower
from dfer.jobs.zeroshot_sets import open_set
from dfer.models import head_file
from dfer.models.config import ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.head_file import released_head
from dfer.models.towers import Towers as BothTowers
from dfer.report import zeroshot_page
from dfer.report.zeroshot import RESULT, SetResult, read_result
from dfer.storage import Folder
from dfer.training.config import EngineConfig, SgdConfig
from tests.unit.data.shardkit import Clip, write_shards

ARCH = "tiny-conv-64"
T = 3


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def noise(draw: np.random.Generator) -> bytes:
    return simplejpeg.encode_jpeg(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8), quality=95)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of clips of one to six frames, stills with eight classes, a folder of pictures, a CLIP and a head."""
    draw, home = np.random.default_rng(5), tmp_path_factory.mktemp("zeroshot")

    def clip(number: int, frames: int, classes: int = 7) -> Clip:
        return Clip(key=f"{number:04d}", label=number % classes, frames=[noise(draw) for _ in range(frames)])

    (home / "clips").mkdir()
    folds = {f"fold_{f}": [[clip(100 * f + n, 1 + n % 6) for n in range(14)]] for f in (1, 2)}
    write_shards(home / "clips", folds)
    (home / "stills").mkdir()
    names = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    stills = {"train": [[clip(0, 1, 8)]], "test": [[clip(8 + n, 1, 8) for n in range(16)]]}
    write_shards(home / "stills", stills, classes=names)
    for name in ("Happy", "sad", "Neutral", "anger", "surprise", "disgust", "Fear", "contempt"):
        (home / "pictures" / name).mkdir(parents=True)
        for number in range(2):
            (home / "pictures" / name / f"{number}.jpg").write_bytes(noise(draw))
    torch.manual_seed(11)
    towers = BothTowers(TowersConfig(arch=ARCH))
    saved = {f"visual.{name}": value for name, value in towers.visual.state_dict().items()}
    saved |= {name.removeprefix("text."): value for name, value in towers.text.state_dict().items()}
    save_file({name: value.clone().contiguous() for name, value in saved.items()}, home / "clip.safetensors")
    torch.save({"mlp.weight": torch.randn(40, towers.embed_dim)}, home / "head.pth")
    return home


def config(home: Path, tmp_path: Path, **changes: Any) -> ZeroshotConfig:
    towers = {"arch": ARCH, "pretrained": f"{home}/clip.safetensors"}
    plain: dict[str, Any] = {
        "run": f"{tmp_path}/run",
        "features": f"{tmp_path}/features",
        "models": {"clip": {"towers": towers}, "exp_clip": {"towers": towers, "head": f"{home}/head.pth"}},
        "texts": ["class_names", "ensemble_5"],
        "sets": {
            "dfew": {"shards": f"{home}/clips", "classes": "basic7"},
            "raf_db": {"pictures": f"{home}/pictures", "classes": "basic7"},
            "afew": {"shards": f"{tmp_path}/none"},
            "ferplus": {},
        },
        "frames": T,
        "workers": 0,
        "batch": 8,
    }
    return from_plain(ZeroshotConfig, {**plain, **changes})


def run_parts(asked: ZeroshotConfig, world: World, *only: str) -> None:
    parts = job.parts(asked)
    job.check(asked, parts, [1])
    for part in parts:
        if part.name in only or not only:
            job.run(asked, part, world, Stop())


def result_of(asked: ZeroshotConfig, name: str) -> SetResult:
    found = read_result(Folder(f"{asked.run}/{name}"))
    assert found is not None
    return found


@pytest.mark.slow("four evaluations")
def test_it_answers_as_zero_shot_on_every_fold(home: Path, tmp_path: Path, alone: World) -> None:
    asked = config(home, tmp_path)
    run_parts(asked, alone, "dfew")
    found = result_of(asked, "dfew")
    assert found.folds == {"1": 14, "2": 14} and found.clips == 28 and found.short == 16
    for model, kind, fold in (
        ("clip", "class_names", 1),
        ("exp_clip", "ensemble_5", 2),
        ("exp_clip", "class_names", 1),
    ):
        theirs = RunConfig(
            run=f"{tmp_path}/{model}-{kind}",
            fold=fold,
            epochs=1,
            eval_batch=5,
            data=DataConfig(
                shards=f"{home}/clips",
                frames=T,
                size=64,
                workers=0,
                classes="basic7",
                sampling="exp_clip",
                train_frames="middle",
                augment=DferClipAugment(crop=False, flip=0.0),
            ),
            model=ZeroShotConfig(towers=asked.models[model].towers, head=asked.models[model].head, text=kind),
            engine=EngineConfig(name="ddp"),
            optim=SgdConfig(groups={}),
        )
        expected = evaluate_run(theirs, alone, trained=False)
        ours = next(answer for answer in found.answers if (answer.model, answer.kind) == (model, kind))
        assert ours.confusion[str(fold)] == expected.confusion
        rows = {
            row["key"]: row
            for row in predictions(Path(asked.run) / "dfew" / "results" / f"{model}-{kind}_predictions.csv")
        }
        for row in predictions(Path(theirs.run) / "results" / "test_predictions.csv"):
            mine = rows[row["key"]]
            assert (mine["label"], mine["predicted"]) == (row["label"], row["predicted"])
            assert float(mine["fear"]) == pytest.approx(float(row["fear"]), abs=2e-5)
    assert read_fold(Folder(theirs.run)).classes == found.classes


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow("four suites")
def test_features_are_computed_once_and_no_tower_is_needed_afterwards(
    home: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copy(home / "clip.safetensors", tmp_path / "clip.safetensors"))
    towers = {"arch": ARCH, "pretrained": str(weights)}
    models = {"clip": {"towers": towers}, "exp_clip": {"towers": towers, "head": f"{home}/head.pth"}}
    first = config(home, tmp_path, models=models, texts=["class_names"])
    built: list[str] = []
    own = zeroshot_features.frozen_towers
    monkeypatch.setattr(zeroshot_features, "frozen_towers", lambda *a, **k: built.append("") or own(*a, **k))
    run_parts(first, alone)
    assert len(built) == 2, "once for each data set; the second model finds what the first has stored"
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*")}
    before = result_of(first, "dfew")
    weights.unlink()
    other = models | {"third": {"towers": towers, "head": f"{home}/head.pth", "temperature": 0.5}}
    second = config(home, tmp_path, models=other, texts=["class_names"], run=f"{tmp_path}/again")
    run_parts(second, alone)
    assert len(built) == 2 and {path: path.stat().st_mtime_ns for path in stored} == stored
    again = result_of(second, "dfew")
    assert again.answers[: len(before.answers)] == before.answers
    assert again.answers[2].confusion == again.answers[1].confusion, "the temperature does not change who wins"
    third = config(home, tmp_path, models=models, texts=["ensemble_10"], run=f"{tmp_path}/third")
    said = rf"models.clip.towers.pretrained={weights}: expected this file, or features made with it in \S+, got neither"
    with pytest.raises(CheckpointError, match=said):
        run_parts(third, alone)


@pytest.mark.slow("a suite over two sets")
def test_a_part_is_done_until_something_that_decides_changes(home: Path, tmp_path: Path, alone: World) -> None:
    texts = tmp_path / "own.yaml"
    texts.write_text("".join(f"{name}: a {name} face\n" for name in exp_clip_classes()))
    asked = config(home, tmp_path, texts=["class_names", str(texts)])
    parts = job.parts(asked)
    assert [part.name for part in parts] == ["dfew", "raf_db"] and not any(job.done(asked, part) for part in parts)
    run_parts(asked, alone)
    assert result_of(asked, "dfew").kinds == ("class_names", "own.yaml") and all(
        job.done(asked, part) for part in parts
    )
    assert job.done(replace(asked, features="elsewhere", batch=3, workers=1), parts[0])
    assert [part.name for part in parts_in(Folder(asked.run))] == ["dfew", "raf_db"]
    for changed in (
        replace(asked, short_clips="repeat_last"),
        replace(asked, texts=("class_names",)),
        replace(asked, models={"clip": asked.models["clip"]}),
        replace(asked, sets={**asked.sets, "dfew": replace(asked.sets["dfew"], folds=(2,))}),
    ):
        assert not job.done(changed, parts[0])
    before = (Path(parts[0].run) / RESULT).stat().st_mtime_ns
    job.run(asked, parts[0], alone, Stop())
    assert (Path(parts[0].run) / RESULT).stat().st_mtime_ns == before, "a result that stands is left as it is"
    texts.write_text(texts.read_text().replace("a fear face", "a scared face"))
    assert not job.done(asked, parts[0])


def exp_clip_classes() -> tuple[str, ...]:
    return ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")


@pytest.mark.slow("two passes over all clips")
def test_the_rules_of_short_clips_differ_on_short_clips_alone(home: Path, tmp_path: Path, alone: World) -> None:
    found = []
    for rule in ("repeat_first", "repeat_last"):
        asked = config(home, tmp_path, short_clips=rule)
        features = clip_features(Towers(asked, "clip", alone), open_set(asked, "dfew"), Stop())
        found.append(features.features["clips"])
    different = {key for key, one, other in zip(features.keys, *found, strict=True) if not torch.equal(one, other)}
    frames = {f"{100 * f + n:04d}": 1 + n % 6 for f in (1, 2) for n in range(14)}
    # A clip of one frame shows it three times under both rules.
    assert different == {key for key, count in frames.items() if 1 < count <= T}


@pytest.mark.slow("a suite over two sets")
def test_two_sets_of_one_folder_share_features(home: Path, tmp_path: Path, alone: World) -> None:
    seven = {"shards": f"{home}/stills", "classes": list(exp_clip_classes())}
    asked = config(
        home, tmp_path, sets={"affectnet7": seven, "affectnet8": {"shards": f"{home}/stills", "classes": "affectnet8"}}
    )
    run_parts(asked, alone)
    few, many = result_of(asked, "affectnet7"), result_of(asked, "affectnet8")
    assert (few.clips, few.left_out, many.clips, many.left_out, many.frames) == (14, 2, 16, 0, 1)
    assert [model.features for model in few.models] == [model.features for model in many.models]
    assert few.classes == exp_clip_classes() and many.classes == (*exp_clip_classes(), "contempt")


@pytest.mark.slow("draws two pictures of scores and eight confusion matrices")
@pytest.mark.usefixtures("no_drawing")
def test_the_table_names_kinds_absent_sets_and_rules(home: Path, tmp_path: Path, alone: World) -> None:
    asked = config(home, tmp_path)
    run_parts(asked, alone)
    text = job.conclude(asked)
    for said in (
        "exp_clip, ensemble_5",
        "clip, mean of 2 kinds",
        "afew: absent, there is no ",
        "ferplus: absent, neither shards nor pictures are given.",
        "28 test clips, 2 folds of `published`, 7 classes; 3 frames a clip; a clip of at most 3 frames shows its first "
        "one 3 times (repeat_first, Exp-CLIP's): 16 clips; fp32.",
        "14 test clips, one fold of `pictures`, 7 classes; stills; fp32.",
        "2 test clips of other classes, or without one, are left out.",
    ):
        assert said in text
    report = Path(asked.run) / "report"
    plain = json.loads((report / "report.json").read_text())
    line = plain["sets"][0]["lines"][2]
    folds = [read_result(Folder(f"{asked.run}/dfew"))]
    assert line["kind"] == "mean of 2 kinds" and line["intervals"]["uar"]["low"] <= line["mean"]["uar"]
    assert folds[0] is not None
    both = plain["sets"][0]["lines"][:2]
    for name in ("uar", "war"):
        assert line["mean"][name] == pytest.approx(sum(each["mean"][name] for each in both) / 2)
    page = (report / "index.html").read_text()
    assert page.count("<svg") == 2 * (1 + 4) and "<script" not in page and "Confusion matrices of exp_clip" in page
    assert plain["absent"].keys() == {"afew", "ferplus"}


# --- refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sets": {"a.b": {}}}, r"sets: expected names of letters, digits, _ and -, got 'a.b'"),
        ({"models": {}}, r"models: expected names of letters, digits, _ and -, got none"),
        ({"models": {"B": {}, "b": {}}}, r"models: .*two that differ in capital letters alone"),
        ({"texts": ["x/own.yaml", "y/own.yaml"]}, r"texts: expected prompt kinds, each once by kind or file name"),
        ({"texts": ["ensemble"]}, r"text: expected one of"),
        (
            {"sets": {"a": {"shards": "x", "pictures": "y"}}},
            r"sets.a: shards, pictures: expected one of them, got both",
        ),
        ({"sets": {"a": {"pictures": "y", "folds": [1]}}}, r"sets.a: pictures: expected no folds"),
        ({"sets": {"a": {"pictures": "s3://b/y"}}}, r"sets.a: pictures: expected a folder on a disk, got a URL"),
        ({"sets": {"a": {"shards": "x", "folders": {"1": "fear"}}}}, r"sets.a: folders: expected none with shards"),
        ({"models": {"a": {"temperature": 0}}}, r"models.a: temperature: expected more than 0, got 0"),
        ({"frames": 0}, r"frames: expected at least 1, got 0"),
        ({"cache_gib": 0}, r"cache_gib: expected more than 0, got 0"),
    ],
)
def test_a_configuration_that_cannot_be_meant(changes: Any, says: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=says):
        config(home, tmp_path, **changes)


@pytest.mark.parametrize("head", ["head.pth", None])
def test_the_entry_of_an_architecture_that_is_refused_is_named(head: str | None, home: Path, tmp_path: Path) -> None:
    model = {"towers": {"arch": "ViT-B-16-SigLIP"}, "head": head and f"{home}/{head}"}
    asked = config(home, tmp_path, models={"b16": model})
    with pytest.raises(
        ConfigProblem, match=r"^models\.b16\.towers\.arch: expected a causal text tower .*SigLIP'\. Take"
    ):
        job.check(asked, job.parts(asked), [1])


def test_a_head_of_another_width_is_told_before_anything_is_computed(home: Path, tmp_path: Path) -> None:
    torch.save({"mlp.weight": torch.ones(4, 512)}, tmp_path / "wide.pth")
    model = {"towers": {"arch": ARCH}, "head": f"{tmp_path}/wide.pth"}
    asked = config(home, tmp_path, models={"b32": model})
    said = (
        r"wide.pth: expected one tensor mlp.weight of \(any number, 128\), the width of tiny-conv-64, "
        r"got mlp.weight \(4, 512\)\. Set models.b32.towers.arch to the CLIP it was fitted on"
    )
    with pytest.raises(CheckpointError, match=said):
        job.check(asked, job.parts(asked), [1])
    gone = config(home, tmp_path, models={"b32": {**model, "head": f"{tmp_path}/gone.pth"}})
    with pytest.raises(CheckpointError, match=r"models.b32.head=\S+gone.pth: expected a local file, got no such file"):
        job.check(gone, job.parts(gone), [1])


def test_no_data_set_or_the_run_of_a_training_is_told(home: Path, tmp_path: Path) -> None:
    none = config(home, tmp_path, sets={"dfew": {}, "afew": {"shards": f"{tmp_path}/x"}})
    with pytest.raises(
        DataError, match=r"sets: expected at least one .* got dfew: neither .*; afew: there is no \S+x\."
    ):
        job.check(none, job.parts(none), [1])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("epochs: 1")
    with pytest.raises(UsageError, match=r"expected a folder for all data sets, got the run of a single training"):
        job.check(config(home, tmp_path), job.parts(config(home, tmp_path)), [1])
    with pytest.raises(CheckpointError, match=r"run: expected the result of a data set, got none"):
        job.conclude(config(home, tmp_path))


def test_texts_that_lack_a_class_or_cannot_be_read_are_told_first(home: Path, tmp_path: Path, alone: World) -> None:
    (tmp_path / "few.yaml").write_text("happiness: glad\n")
    asked = config(home, tmp_path, texts=[f"{tmp_path}/few.yaml"])
    with pytest.raises(ConfigProblem, match=r"few.yaml: expected a text for every class, got none for sadness"):
        run_parts(asked, alone)
    assert not (tmp_path / "features").exists()
    with pytest.raises(ConfigProblem, match=r"none.yaml: expected a YAML file of texts, got No such file"):
        run_parts(config(home, tmp_path, texts=[f"{tmp_path}/none.yaml"]), alone)


def test_shards_without_a_test_part_are_told(home: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    (tmp_path / "affectnet").mkdir()
    write_shards(tmp_path / "affectnet", {"all": [[Clip(key="a", frames=[noise(draw)])]]})
    asked = config(home, tmp_path, sets={"affectnet7": {"shards": f"{tmp_path}/affectnet"}})
    said = (
        r"sets.affectnet7: test clips: expected a test part, as of the protocol `published`, got shards of test with p"
    )
    with pytest.raises(DataError, match=said):
        open_set(asked, "affectnet7")
    folds = config(home, tmp_path, sets={"dfew": {"shards": f"{home}/clips", "folds": [7]}})
    with pytest.raises(UsageError, match=r"sets.dfew: folds: expected some of 1, 2, got 7"):
        open_set(folds, "dfew")
    classes = config(home, tmp_path, sets={"dfew": {"shards": f"{home}/clips", "classes": ["fear", "contempt"]}})
    with pytest.raises(
        UsageError, match=r"sets.dfew: classes: expected classes of the shards, got .* without contempt"
    ):
        open_set(classes, "dfew")
    (tmp_path / "affectnet" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"sets.affectnet7: \S+manifest.json: expected JSON"):
        open_set(asked, "affectnet7")


def test_class_folders_map_by_name_or_as_they_are_told(home: Path, tmp_path: Path) -> None:
    draw, root = np.random.default_rng(1), tmp_path / "numbered"
    for name in ("1", "2", "train"):
        (root / name).mkdir(parents=True)
        (root / name / "a.jpg").write_bytes(noise(draw))
    own: dict[str, Any] = {"pictures": str(root), "classes": ["surprise", "fear"]}
    said = (
        r"sets.raf_db: \S+numbered: expected folders named as classes \(surprise, fear\), got 1, 2, train\. Give the f"
    )
    with pytest.raises(DataError, match=said):
        open_set(config(home, tmp_path, sets={"raf_db": own}), "raf_db")
    (root / "train" / "a.jpg").unlink()
    told = {**own, "folders": {"1": "surprised", "2": "fear"}}
    found = open_set(config(home, tmp_path, sets={"raf_db": told}), "raf_db")
    assert found.keys == ["1/a.jpg", "2/a.jpg"] and found.labels.tolist() == [0, 1] and found.frames == 1
    (root / "b.jpg").write_bytes(noise(draw))
    with pytest.raises(DataError, match=r"got pictures beside the folders\."):
        open_set(config(home, tmp_path, sets={"raf_db": told}), "raf_db")
    plain = open_set(config(home, tmp_path, sets={"x": {"pictures": f"{home}/pictures"}}), "x")
    assert plain.emotions.names == (*exp_clip_classes(), "contempt")


def test_damaged_results_are_told(home: Path, tmp_path: Path, alone: World) -> None:
    asked = config(home, tmp_path, texts=["class_names"], models={"clip": {"towers": {"arch": ARCH}}})
    part = job.parts(asked)[1]
    job.run(asked, part, alone, Stop())
    path = Path(part.run) / RESULT
    plain = json.loads(path.read_text())
    plain["answers"][0]["confusion"]["1"][0][0] += 1
    for text in (json.dumps(plain), "[]", "{"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"zeroshot.json: expected a result of the suite, got something else"):
            job.done(asked, part)


# --- what the release is recognised by


def test_released_heads_and_towers_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(b"hello\n")  # git hash-object gives ce01362... for these six bytes
    assert released_head(tmp_path / "a.pth") == ""
    monkeypatch.setattr(head_file, "HEADS", {"ce013625030ba8dba906f756967f9e9ca394464a": "B16"})
    assert released_head(tmp_path / "a.pth") == "B16"
    asked = from_plain(ZeroshotConfig, {"run": "r", "features": "f", "sets": {"a": {}}, "models": MODELS})
    found = {name: released_tower(model) for name, model in asked.models.items()}
    assert found == {"b32": "B32", "l14": "L14", "other": "", "normalised": "", "laion": ""}


MODELS: dict[str, Any] = {
    "b32": {"towers": {"arch": "ViT-B-32-quickgelu", "pretrained": "openai"}},
    "l14": {"towers": {"arch": "ViT-L-14-quickgelu", "pretrained": "/data/ViT-L-14.pt"}},
    "other": {"towers": {"arch": "ViT-B-32-quickgelu", "pretrained": "/data/mine.pt"}},
    "normalised": {"towers": {"arch": "ViT-B-32-quickgelu", "pretrained": "openai"}, "clip_normalisation": True},
    "laion": {"towers": {"arch": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}},
}


# --- the job


@pytest.mark.slow("two commands")
def test_paths_become_absolute_and_the_job_is_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = replace(config(home, tmp_path), run="run", features="f", cache="c", texts=("class_names", "my.yaml"))
    asked = replace(
        asked,
        sets={"dfew": replace(asked.sets["dfew"], shards="d"), "s": replace(asked.sets["dfew"], shards="s3://b/x")},
    )
    whole = job.absolute(asked)
    assert (whole.run, whole.features, whole.cache) == (f"{tmp_path}/run", f"{tmp_path}/f", f"{tmp_path}/c")
    assert whole.texts == ("class_names", f"{tmp_path}/my.yaml") and whole.models["clip"].towers.arch == ARCH
    assert job.shared(whole) == {"features": f"{tmp_path}/f", "sets.dfew": f"{tmp_path}/d", "sets.s": "s3://b/x"}
    (tmp_path / "suite.yaml").write_text(to_yaml(config(home, tmp_path)))
    module, loaded = load_job([tmp_path / "suite.yaml"], ["sets.afew.shards=010", "sets.dfew=null"])
    assert module is job and loaded.sets["afew"].shards == "010" and "dfew" not in loaded.sets
    assert main(["zeroshot", "suite.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("dfew: to do\nraf_db: to do\n")
    assert main(["zeroshot", "suite.yaml", "--only", "raf_db", "texts=[class_names]"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("raf_db: 2 models x 1 prompt kinds on 14 clips\n") and "dfew: there, but not evaluated" in out
    assert Part(name="raf_db", run=f"{tmp_path}/run/raf_db") in job.parts(config(home, tmp_path))


# --- before any work, and parts that fail


def unusable(home: Path, tmp_path: Path, what: str) -> tuple[dict[str, Any], type[Exception], str]:
    """Changes that make a second data set unusable beside a good one; the error and what it says."""
    draw, bad = np.random.default_rng(1), tmp_path / "bad"
    bad.mkdir()
    good = {"shards": f"{home}/clips", "classes": "basic7"}
    if what == "numbered":
        (bad / "1").mkdir()
        (bad / "1" / "a.jpg").write_bytes(noise(draw))
        own = {"pictures": str(bad), "classes": ["surprise", "fear"]}
        return {"sets": {"dfew": good, "raf_db": own}}, DataError, "sets.raf_db: .*expected folders named as classes"
    if what == "split":
        write_shards(bad, {"all": [[Clip(key="a", frames=[noise(draw)])]]})
        return {"sets": {"dfew": good, "affectnet7": {"shards": str(bad)}}}, DataError, "sets.affectnet7: test clips: "
    if what == "texts":
        (tmp_path / "seven.yaml").write_text("".join(f"{name}: {name}\n" for name in exp_clip_classes()))
        sets = {"dfew": good, "affectnet8": {"shards": f"{home}/stills", "classes": "affectnet8"}}
        return {"sets": sets, "texts": [f"{tmp_path}/seven.yaml"]}, ConfigProblem, "seven.yaml: .* none for contempt"
    towers = {"arch": ARCH, "pretrained": f"{tmp_path}/gone.safetensors"}
    return {"models": {"clip": {"towers": towers}}}, CheckpointError, "models.clip.towers.pretrained=.*, got neither"


@pytest.mark.parametrize("what", ["numbered", "split", "texts", "weights"])
def test_a_set_that_cannot_be_used_is_told_before_the_others_are_computed(
    what: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, kind, says = unusable(home, tmp_path, what)
    asked = config(home, tmp_path, **changes)
    with pytest.raises(kind, match=says):
        job.check(asked, job.parts(asked), [1])
    (tmp_path / "suite.yaml").write_text(to_yaml(asked))
    assert main(["zeroshot", f"{tmp_path}/suite.yaml", "--dry-run"]) == getattr(kind, "exit_code", 2)
    assert "to do" not in capsys.readouterr().out and not (tmp_path / "features").exists()


@pytest.mark.slow("a command that evaluates two sets")
def test_a_set_that_fails_does_not_cost_the_table_of_the_others(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeroshot_page, "page", lambda suite: "")  # its pictures take seconds
    shutil.copytree(home / "pictures", tmp_path / "damaged")
    (tmp_path / "damaged" / "Fear" / "0.jpg").write_bytes(b"\xff\xd8\xff no picture")
    sets = {"damaged": tmp_path / "damaged", "raf_db": home / "pictures"}
    own = {name: {"pictures": str(place), "classes": "basic7"} for name, place in sets.items()}
    asked = config(home, tmp_path, sets=own, texts=["class_names"], models={"clip": {"towers": {"arch": ARCH}}})
    (tmp_path / "suite.yaml").write_text(to_yaml(asked))
    assert main(["zeroshot", f"{tmp_path}/suite.yaml"]) == DataError.exit_code
    out, err = capsys.readouterr()
    assert "damaged: failed, " in err and err.rstrip().splitlines()[-1].startswith("error: ") and "Fear/0.jpg" in err
    assert out.startswith("raf_db: 1 models x 1 prompt kinds on 14 clips\n")
    assert "damaged: there, but not evaluated" in out and (tmp_path / "run" / "report" / "report.md").is_file()


@pytest.mark.slow("two evaluations")
def test_a_result_of_other_clips_or_weights_does_not_stand(home: Path, tmp_path: Path, alone: World) -> None:
    shutil.copytree(home / "pictures", tmp_path / "faces")
    weights = Path(shutil.copy(home / "clip.safetensors", tmp_path / "clip.safetensors"))
    changes: dict[str, Any] = {
        "sets": {"raf_db": {"pictures": f"{tmp_path}/faces", "classes": "basic7"}},
        "texts": ["class_names"],
        "models": {"clip": {"towers": {"arch": ARCH, "pretrained": str(weights)}}},
    }
    asked = config(home, tmp_path, **changes)
    part = job.parts(asked)[0]
    run_parts(asked, alone)
    assert job.done(asked, part)
    (tmp_path / "faces" / "Fear" / "more.jpg").write_bytes((home / "pictures" / "Fear" / "0.jpg").read_bytes())
    assert not job.done(asked, part)
    with pytest.raises(CheckpointError, match="expected the result of a data set, got none"):
        job.conclude(asked)
    run_parts(asked, alone)
    assert job.done(asked, part) and result_of(asked, "raf_db").clips == 15
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\0\0\1\0")
    assert not job.done(asked, part)
    weights.unlink()
    assert job.done(asked, part), "with the weights gone, the result stands as the features do"
    weights.write_bytes(kept)
    assert job.done(asked, part)
    shutil.rmtree(tmp_path / "faces")
    (tmp_path / "faces").mkdir()
    assert not job.done(asked, part), "a source that cannot be read has no result, and is no error here"


def test_a_picture_whose_name_is_not_utf_8_is_answered(home: Path, tmp_path: Path, alone: World) -> None:
    shutil.copytree(home / "pictures" / "Fear", tmp_path / "faces" / "Fear")
    odd = os.fsencode(tmp_path / "faces" / "Fear") + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes((home / "pictures" / "Happy" / "0.jpg").read_bytes())
    models = {"clip": {"towers": {"arch": ARCH}}}
    sets = {"raf_db": {"pictures": f"{tmp_path}/faces", "classes": ["fear"]}}
    asked = config(home, tmp_path, texts=["class_names"], models=models, sets=sets)
    run_parts(asked, alone)
    table = tmp_path / "run" / "raf_db" / "results" / "clip-class_names_predictions.csv"
    assert b"Fear/\xff.jpg" in table.read_bytes() and job.done(asked, job.parts(asked)[0])
