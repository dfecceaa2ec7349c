"""Pairs of features are made once, by any number of parts, killed or not; a head is fitted to them on any number of
ranks, and to the pictures themselves."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from launch.status import status
from tests import servers, warm
from tests.integration.commands import environment, finish, here, largest_difference, records, start
from tests.integration.ranks import finish_ranks

pytestmark = pytest.mark.integration

PICTURES, SIDE = 90, 64
PAIRS = f"""
  size: {SIDE}
  batch: 4
  workers: 0
  towers: {{arch: tiny-vit-64}}
  teacher: {{name: words, dim: 32}}
"""
WORDS = ("brow", "raised", "lip", "jaw", "drop", "cheek", "nose")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with descriptions, and the pairs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = np.random.default_rng(1)
    lines = ["file,text"]
    for number in range(PICTURES):
        path = folder / "pictures" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), draw.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        lines.append(f"{path.relative_to(folder / 'pictures')},{' '.join(draw.choice(WORDS, 3))} {number}")
    (folder / "pictures" / "descriptions.csv").write_text("\n".join(lines) + "\n")
    config(folder / "extract.yaml", "extract", folder)
    config(folder / "fit.yaml", "fit", folder, "epochs: 3\nbatch: 24\nlog_every: 1\ncheckpoint: {every_steps: 1}\n")
    finish("extract", folder / "extract.yaml", f"run={folder}/run")
    return folder


def config(path: Path, job: str, folder: Path, more: str = "") -> Path:
    pairs = f"pairs:{PAIRS}  pictures: {folder}/pictures\n  features: {folder}/features\n"
    path.write_text(f"job: {job}\nrun: {folder}/run_{job}\n{more}{pairs}")
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files; what a killed process was writing has a name of its own, which begins with a period."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow("two launches that are killed, each of which starts two processes, and two that finish")
def test_parts_killed_at_random_make_the_bytes_of_an_undisturbed_run(home: Path, tmp_path: Path) -> None:
    expected = snapshot(home / "features")
    draw, killed = random.Random(1), 0
    for workers in (3, 2):
        words = [f"run={tmp_path}/run_{workers}", f"pairs.features={tmp_path}/features", f"workers={workers}"]
        command = [sys.executable, "-m", "launch", "local", str(home / "extract.yaml"), "--parallel", "2", *words]
        with warm.Popen(command, env=environment(), start_new_session=True, stderr=-3, stdout=-3) as process:
            deadline = time.monotonic() + 120
            wanted = draw.randint(1, 4) + len(list(tmp_path.glob("features/*/0*")))
            while len(list(tmp_path.glob("features/*/0*"))) < wanted and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            for child in subprocess.run(
                ["pgrep", "-s", str(process.pid)], capture_output=True, text=True
            ).stdout.split():
                subprocess.run(["kill", f"-{signal.SIGKILL:d}", child], check=False, stderr=-3)
            process.wait(timeout=30)
            killed += process.returncode != 0
    assert killed == 2 and not list(tmp_path.glob("features/*/manifest.json"))
    told = finish(
        "extract", home / "extract.yaml", f"run={tmp_path}/run", f"pairs.features={tmp_path}/features", "workers=4"
    )
    assert f"{PICTURES} pairs (student 96, teacher 32)" in told.stdout
    assert snapshot(tmp_path / "features") == expected
    again = finish(
        "extract", home / "extract.yaml", f"run={tmp_path}/run", f"pairs.features={tmp_path}/features", "workers=4"
    )
    assert again.stdout.endswith(told.stdout.splitlines()[-1] + "\n")


def test_a_teacher_of_words_refuses_shards_without_descriptions(tmp_path: Path, dfew: Path) -> None:
    """Clips of the generated faces have none."""
    path = config(tmp_path / "extract.yaml", "extract", tmp_path)
    words = ["pairs.pictures=null", f"pairs.shards={dfew / 'shards'}", f"pairs.features={tmp_path}/features"]
    done = start("extract", path, *words)
    assert done.returncode == 3 and "expected a description of each of 35 pictures, got 35 without" in done.stderr


def test_pairs_of_shards_in_a_bucket_are_those_of_the_same_shards_on_disk(
    home: Path, tmp_path: Path, dfew: Path
) -> None:
    """Read from S3 and written into it, by two parts; a small random BLIP-2 needs no descriptions."""
    pytest.importorskip("transformers")
    from tests.unit.teacher import models

    teacher = f"pairs.teacher={{name: blip2, model: {models.blip('blip2', tmp_path / 'blip')}, precision: fp32}}"
    sizes = (f"pairs.size={models.SIDE}", f"pairs.towers.image_size={models.SIDE}", "workers=2", teacher)

    def extracted(name: str, shards: object, features: object, **environment: str) -> str:
        places = (
            f"run={tmp_path}/{name}",
            "pairs.pictures=null",
            f"pairs.shards={shards}",
            f"pairs.features={features}",
        )
        return finish("extract", home / "extract.yaml", *places, *sizes, **environment).stdout

    told = extracted("disk", dfew / "shards", tmp_path / "features")
    assert f"35 pairs (student 96, teacher {models.WIDTH})" in told
    with servers.rclone(tmp_path / "served") as server:
        shutil.copytree(dfew / "shards", server.files / "shards")
        own = {**server.environment, "DFER_CACHE": str(tmp_path / "cache")}
        told = extracted("bucket", f"{server.url}/shards", f"{server.url}/features", **own)
        assert f"{server.url}/features" in told
        found = snapshot(server.files / "features")
    assert sum(name.endswith(".safetensors") for name in found) > 1
    assert found == snapshot(tmp_path / "features")


def test_one_two_and_three_ranks_and_pictures_have_one_curve(home: Path, tmp_path: Path) -> None:
    losses, right = {}, {}
    for name, ranks, words in (("one", 1, []), ("three", 3, []), ("pictures", 1, ["on=pictures"])):
        finish_ranks(("-m", "dfer", "fit", home / "fit.yaml", f"run={tmp_path}/{name}", *words), ranks=ranks)
        losses[name] = [record["loss"] for record in records(tmp_path / name / "fit", "train")]
        right[name] = [record["accuracy"] for record in records(tmp_path / name / "fit", "train")]
    told = finish("local", home / "fit.yaml", "--processes", 2, f"run={tmp_path}/launched", module="launch").stdout
    assert "accuracy: picture -> teacher" in told
    losses["launched"] = [record["loss"] for record in records(tmp_path / "launched" / "fit", "train")]
    assert len({*losses["one"]}) == 9
    assert losses["launched"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["three"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["pictures"] == pytest.approx(losses["one"], rel=1e-5)
    assert right["three"] == right["one"] == right["pictures"] and max(right["one"]) > 0
    assert largest_difference(tmp_path / "one" / "fit", tmp_path / "three" / "fit") < 1e-6


def test_a_killed_fit_ends_the_same(home: Path, tmp_path: Path) -> None:
    finish("fit", home / "fit.yaml", f"run={tmp_path}/whole", "epochs=20")
    command = [sys.executable, "-m", "dfer", "fit", str(home / "fit.yaml"), f"run={tmp_path}/killed", "epochs=20"]
    log = tmp_path / "killed" / "fit" / "metrics.jsonl"
    with warm.Popen(command, env=environment(), stdout=-3, stderr=-3) as process:
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < 12:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not (tmp_path / "killed" / "fit" / "results").exists()
    assert [row.state for row in status(str(tmp_path / "killed"))] == ["begun"]
    finish("fit", home / "fit.yaml", f"run={tmp_path}/killed", "epochs=20")
    ours, theirs = (tmp_path / name / "fit" / "head" / "head.safetensors" for name in ("killed", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    results = [json.loads((path.parents[1] / "results" / "fit.json").read_text()) for path in (ours, theirs)]
    assert results[0]["train_accuracy"] == results[1]["train_accuracy"], "steps before the kill are counted"
    assert [row.state for row in status(str(tmp_path / "killed"))] == ["finished"]
    curves = [[record["loss"] for record in records(tmp_path / name / "fit", "train")] for name in ("killed", "whole")]
    assert curves[0] == curves[1] and len(curves[0]) == 60


def test_a_sweep_is_a_part_for_each_combination(home: Path, tmp_path: Path) -> None:
    words = ("sweep.temperature=[0.01,0.1]", "sweep.batch=[12,24]", "sweep.lr=[0.001]", "epochs=1", "val_share=0.2")
    told = finish("fit", home / "fit.yaml", f"run={tmp_path}", *words).stdout
    names = {f"temperature_{t}_batch_{b}_lr_0.001" for t in ("0.01", "0.1") for b in (12, 24)}
    assert {path.name for path in tmp_path.iterdir()} == names | {"report"}
    assert all(name in told for name in names) and "32 held-out pairs" in told
    rows = json.loads((tmp_path / "report" / "fits.json").read_text())
    assert {*rows} == names and [row["accuracy"] for row in rows.values()] == sorted(
        (row["accuracy"] for row in rows.values()), reverse=True
    )
    head = next(tmp_path.glob("*/head/ExpCLIP_head.pth"))
    imported = finish("import", head, "--method", "exp_clip", tmp_path / "imported").stdout
    assert "written, 1 tensors; use it as methods/zero_shot with model.head=" in imported


ASKED = ("describe the person", "play the role")
"""Of words that the small model knows."""


@pytest.mark.slow("imports transformers; three extractions by a BLIP-2 and two fits")
def test_a_sweep_of_instructions_makes_the_pairs_of_each_and_a_head_of_each(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small random BLIP-2; the second instruction takes the student's features from the pairs of the first."""
    pytest.importorskip("transformers")
    from dfer.jobs import pair_data
    from tests.unit.teacher import models

    seen: list[int] = []
    frame_features = pair_data.frame_features

    def counted(visual: Any, pictures: Any, **words: Any) -> Any:
        seen.append(len(pictures))
        return frame_features(visual, pictures, **words)

    monkeypatch.setattr(pair_data, "frame_features", counted)
    teacher = f"pairs.teacher={{name: blip2, model: {models.blip('blip2', tmp_path / 'blip')}, precision: fp32}}"
    sizes = (f"pairs.size={models.SIDE}", f"pairs.towers.image_size={models.SIDE}", "pairs.batch=16", teacher)
    sweep = f"sweep.instruction={json.dumps(ASKED)}"

    def done(verb: str, name: str, *words: str, code: int = 0) -> str:
        places = (f"run={tmp_path}/{verb}_{name}", f"pairs.features={tmp_path}/{name}")
        told = here(capsys, verb, home / f"{verb}.yaml", *places, *sizes, *words)
        assert told.returncode == code, told.stderr
        return str(told.stderr if code else told.stdout)

    told = done("extract", "swept", sweep, "workers=2")
    assert sum(seen) == PICTURES and told.count(f"{PICTURES} pairs (student 96, teacher {models.WIDTH})") == 2
    assert [line.split(":")[0] for line in told.splitlines()[:4]] == [
        f"instruction_{number}/worker_{worker}" for number in (1, 2) for worker in (1, 2)
    ]
    states = [(row.part, row.state) for row in status(str(tmp_path / "extract_swept"))]
    assert states == [(f"instruction_{number}/worker_{worker}", "finished") for number in (1, 2) for worker in (1, 2)]
    for text in ASKED:
        done("extract", "single", f"run={tmp_path}/{ASKED.index(text)}", f"pairs.teacher.instruction={text}")
    assert len(snapshot(tmp_path / "swept")) > 2 and snapshot(tmp_path / "swept") == snapshot(tmp_path / "single")

    told = done("fit", "swept", sweep, "epochs=1")
    assert "instruction_1" in told and "instruction_2" in told
    heads = [tmp_path / "fit_swept" / f"instruction_{n}" / "head" / "head.safetensors" for n in (1, 2)]
    assert heads[0].read_bytes() != heads[1].read_bytes()
    other = done("fit", "swept", "run=" + str(tmp_path / "other"), "pairs.teacher.instruction=Count the teeth.", code=3)
    assert "expected pairs with teacher.instruction: Count the teeth., got teacher.instruction: " in other


def test_a_set_of_pairs_is_fitted_without_what_it_was_made_of(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as on another machine; a fit beside the pictures has the same head."""
    (stored,) = (home / "features").iterdir()
    shutil.copytree(stored, tmp_path / "copied")
    config = (f"pairs.features={tmp_path}/copied", "epochs=1")
    moved = (f"run={tmp_path}/moved", "pairs.pictures=null", "pairs.batch=7", *config)
    for words in ((f"run={tmp_path}/beside", "epochs=1"), moved):
        told = here(capsys, "fit", home / "fit.yaml", *words)
        assert told.returncode == 0, told.stderr
    heads = [tmp_path / name / "fit" / "head" for name in ("beside", "moved")]
    assert len({(head / "head.safetensors").read_bytes() for head in heads}) == 1
    key = json.loads((stored / "manifest.json").read_text())["key"]
    card = (heads[1] / "README.md").read_text()
    assert f"{tmp_path}/copied, sha256 {key['source_sha256']}" in card and "kind words" in card
    towers = "model.towers.arch=tiny-vit-64 model.towers.pretrained=null model.clip_normalisation="
    assert f"dfer crossval methods/zero_shot sets/SET {towers}" in card and f" data.size={SIDE}\n" in card
    refusals = {
        ("fit", "pairs.teacher.seed=2", "pairs.size=32"): "pairs with size: 32; teacher.seed: 2, got size: 64; teacher",
        ("fit", "pairs.towers.arch=tiny-conv-64"): "pairs with clip.arch: tiny-conv-64, got clip.arch: tiny-vit-64. ",
        ("fit", "on=pictures"): "expected a folder below which features are stored, got that of one set of pairs",
        ("extract",): "copied: expected a folder below which features are stored, got that of one set of pairs",
    }
    for (verb, *words), said in refusals.items():
        places = (f"run={tmp_path}/refused", f"pairs.features={tmp_path}/copied", "pairs.pictures=null")
        told = here(capsys, verb, home / f"{verb}.yaml", *places, *words)
        assert told.returncode in (2, 3) and said in told.stderr, told.stderr
    nothing = here(capsys, "fit", home / "fit.yaml", f"run={tmp_path}/refused", "pairs.pictures=null")
    assert nothing.returncode == 2 and "pairs: expected shards or pictures, got neither. Set pairs." in nothing.stderr
    both = here(capsys, "fit", home / "fit.yaml", f"run={tmp_path}/refused", "pairs.shards=s")
    assert "expected shards or pictures, got both. Set pairs.pictures=null" in both.stderr


def test_torchrun_is_refused_by_a_job_of_independent_parts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its first process; the other ones end without an error, for which torchrun would end the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        told.append(here(capsys, "extract", home / "extract.yaml", f"run={tmp_path}/run"))
    assert [done.returncode for done in told] == [2, 0] and not (tmp_path / "run").exists()
    assert "torchrun: expected one process, in which `dfer extract` runs independent parts, got" in told[0].stderr
    assert "got 2 processes. Leave torchrun out. For parts side by side: workers=N with dfer-launch" in told[0].stderr


OTHERS = {
    "pairs.towers.arch=tiny-conv-64": r"pairs with clip.arch: tiny-conv-64, got clip.arch: tiny-vit-64",
    "pairs.teacher.seed=2": r"pairs with teacher.seed: 2, got teacher.seed: 1",
    "pairs.size=32": r"pairs with size: 32, got size: 64",
    "pairs.features={0}/none": r"expected pairs of features, got none. Make them: dfer extract",
    "batch=100": r"batch: expected at most the 90 pairs, got 100",
    "pairs.pictures={0}": r"{0}: expected a folder with .jpg, .png, .bmp, .webp or .tif pictures, got none",
    "pairs.teacher.dropout=true": r"pairs.teacher.dropout: unknown key. Known: dim, name, seed",
    "flip=0.5": r"flip: expected neither flip nor dropout with stored features",
}


@pytest.mark.parametrize("word", OTHERS)
def test_what_does_not_fit_is_told_before_anything_is_computed(
    word: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = here(capsys, "fit", home / "fit.yaml", f"run={tmp_path}/run", word.format(tmp_path))
    assert done.returncode in (2, 3) and OTHERS[word].format(tmp_path) in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_damaged_picture_is_named_and_another_one_changes_the_key(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "a" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = (f"run={tmp_path}/run", f"pairs.pictures={tmp_path}/pictures", f"pairs.features={tmp_path}/features")
    done = start("extract", home / "extract.yaml", *words)
    assert done.returncode == 3 and "a/000.png: expected a whole JPEG, PNG, BMP, WebP or TIFF" in done.stderr
    plans = [json.loads((path / "run" / "plan.json").read_text())["depends"] for path in (home, tmp_path)]
    assert plans[0].pop("source_sha256") != plans[1].pop("source_sha256") and plans[0] == plans[1]
