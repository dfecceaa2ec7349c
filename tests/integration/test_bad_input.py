"""What users get wrong on the way from shards to a result: one line that helps, an exit code, and nothing half-written.

What the builder refuses is in tests/unit/shards and test_build.py.
"""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfer import config_files
from dfer.jobs.config import RunConfig
from dfer.run.checkpoint_files import damage
from dfer.storage import Folder
from tests import warm
from tests.integration.commands import (
    Capture,
    copied,
    environment,
    finish,
    here,
    largest_difference,
    records,
    refused,
    result,
    start,
)
from tests.integration.disks import resize, small_disk

__all__ = ["small_disk"]
pytestmark = pytest.mark.integration


# Configurations


def test_all_mistakes_of_a_file_are_told_at_once(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {tiny}\nepoch: 3\nbatch: many\noptim: {{groups: {{image: {{lr: 1e-5}}}}}}\n")
    refused(
        start("train", path, f"run={tmp_path / 'run'}"),
        2,
        f"error: {path}: ",
        "epoch: unknown key. Did you mean 'epochs'?",
        "batch: expected a whole number, got 'many' (str)",
        "optim.groups.image.lr: expected a number, got '1e-5' (str). YAML reads 1e-5 as text: write it with a point, "
        "1.0e-5, and no quotes",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("optim: {groups: {images: {lr: 1.0e-5}}}", 2, "images"),
        ("engine: {precision: fp16}", 2, "engine.precision: expected fp32 or bf16 on a CPU, got fp16."),
        ("batch: 29", 2, "batch: expected at most the 28 clips of the training partitions, got 29."),
        ("fold: 6", 2, "fold: expected one of 1, 2, 3, 4, 5, got 6."),
        ("model: {towers: {arch: ViT-Z-64}}", 2, "ViT-Z-64"),
        ("model: {released: no.pth}", 2, "model.released: a key of earlier versions. Make a saved model"),
        ("data: {shards: 's4://bucket/shards'}", 2, "s4://bucket/shards: expected a folder or an fsspec URL, got "),
    ],
)
def test_a_configuration_that_does_not_fit(
    tiny: Path, tmp_path: Path, capsys: Capture, line: str, code: int, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {tiny}\nrun: {tmp_path / 'run'}\n{line}\n")
    refused(here(capsys, "train", path), code, said)
    assert not list(tmp_path.glob("run/results")) and not list(tmp_path.glob("run/checkpoints/step_*"))


def test_classes_that_do_not_fit_the_shards(tiny: Path, tmp_path: Path) -> None:
    line = refused(start("train", tiny, f"run={tmp_path / 'run'}", "data.classes=mafw11"), 2)
    assert "data.classes=mafw11: expected the 11 classes happiness, sadness," in line
    assert "got 7: " in line and "Set data.classes=basic7, or data.shards to other shards than dfew." in line


def test_a_batch_that_two_processes_cannot_share(tiny: Path, tmp_path: Path) -> None:
    done = start("train", tiny, f"run={tmp_path / 'run'}", "batch=7", ranks=2)
    assert done.returncode == 1 and "exitcode  : 2" in done.stderr
    assert done.stderr.count("error: batch: expected a multiple of 2 ranks, got 7. Set batch to 6 or 8") == 1
    assert "dfer/__main__.py" not in done.stderr
    finish("train", tiny, f"run={tmp_path / 'run'}", "epochs=1")


# NCCL's destroy_process_group waits for the other ranks. None of these may be waited for.
LOSES_ITS_PARTNER = """
import sys, time
from dfer import __main__ as cli
process_exit = cli.ProcessExit()
from dfer import distributed
from dfer.jobs import train as job
from dfer.errors import DataError
distributed.dist.destroy_process_group = lambda *_: time.sleep(600)
def train(config, world, stop):
    if world.rank:
        raise DataError("x: broken")
    distributed.barrier()
job.train = train
process_exit.run_and_exit(lambda: cli.main(sys.argv[1:]))
"""


def test_a_process_that_lost_the_other_says_so_in_one_line(tiny: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    words = [sys.executable, "-c", LOSES_ITS_PARTNER, "train", str(tiny), f"run={tmp_path / 'run'}"]
    started = [
        warm.Popen(
            words, env=environment(**place, RANK=str(rank), LOCAL_RANK=str(rank)), stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [7, 3]
    # gloo says what it was about, and which way the connection went.
    line = (
        r"error: process 0 of 2: expected an answer from the other processes, got .*Connection (closed|reset) by peer.*"
    )
    end = r"\. Another process stopped; its message says why\.\n"
    assert re.fullmatch(line + end, told[0])
    assert told[1] == "error: x: broken\n"


# Shards


@pytest.fixture
def shards(dfew: Path, tmp_path: Path) -> Path:
    return copied(dfew / "shards", tmp_path / "shards")


def refused_shards(capsys: Capture, tiny: Path, shards: Path, *said: str) -> None:
    """Training on these shards is refused."""
    run = shards.parent / "run"
    refused(here(capsys, "train", tiny, f"run={run}", f"data.shards={shards}"), 3, *said)
    assert not (run / "results").exists()


def test_a_folder_without_manifest(capsys: Capture, tiny: Path, shards: Path) -> None:
    (shards / "manifest.json").unlink()
    refused_shards(
        capsys,
        tiny,
        shards,
        f"{shards}/manifest.json: expected the manifest that a finished build writes last, ",
        "got no such file. Correct data.shards, or run `dfer-shards build` to its end.",
    )


def test_a_manifest_of_another_version(capsys: Capture, tiny: Path, shards: Path) -> None:
    plain = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps({**plain, "version": 2}))
    refused_shards(
        capsys,
        tiny,
        shards,
        f"{shards}/manifest.json: expected format version 3, got 2. An earlier dfer wrote these "
        "shards: run `dfer-shards build DATASET RAW OUT` with a new OUT.",
    )


def test_an_index_with_a_wrong_hash(capsys: Capture, tiny: Path, shards: Path) -> None:
    path = next(shards.glob("fold_2/*.index.json"))
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "label": [(label + 1) % 7 for label in plain["label"]]}))
    refused_shards(capsys, tiny, shards, f"{path}: expected sha256 ", "changed or damaged after the build")


def test_a_shard_cut_short(capsys: Capture, tiny: Path, shards: Path) -> None:
    path = next(shards.glob("fold_3/*.tar"))
    path.write_bytes(path.read_bytes()[:-10_000])
    refused_shards(capsys, tiny, shards, f"{path}: expected ", "bytes as the manifest says", "copy it again")


def damaged_frames(shards: Path, partition: str) -> tuple[Path, int]:
    """Fill the second halves of a clip's frames with zeros inside its shard; the shard and where the clip begins.

    Sampling takes any frame of a segment, so all frames of the clip are damaged likewise.
    """
    index = next(shards.glob(f"{partition}/*.index.json"))
    columns = json.loads(index.read_text())
    first, frames = columns["frames"][:2]
    shard = index.with_name(index.name.replace(".index.json", ".tar"))
    data, at = bytearray(shard.read_bytes()), columns["offset"][1]
    for size in columns["sizes"][first : first + frames]:
        assert data[at : at + 2] == b"\xff\xd8"
        data[at + size // 2 : at + size] = bytes(size - size // 2)
        at += size + -size % 512 + 512
    shard.write_bytes(data)
    return shard, columns["offset"][1]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_frames_met_in_training(tiny: Path, shards: Path, workers: int) -> None:
    shard, at = damaged_frames(shards, "fold_2")
    run = shards.parent / "run"
    # All 28 clips in one step: whichever order they come in, the clip is met at once.
    done = start("train", tiny, f"run={run}", f"data.shards={shards}", f"data.workers={workers}", "batch=28")
    line = refused(
        done, 3, f"{shard}, clip ", ": expected sha256 ", "changed or damaged after the build: copy it again"
    )
    words = line.partition(" of its bytes ")[2].partition(",")[0].split(" to ")
    assert int(words[0]) <= at < int(words[1])
    assert not records(run, "train") and not (run / "results").exists()
    verified = start("verify", shards, "--no-progress", module="shards")
    assert verified.returncode == 3 and "fold_2/" in verified.stderr


def test_damaged_frames_met_in_evaluation(
    capsys: Capture, tiny: Path, shards: Path, crossval: tuple[Path, str]
) -> None:
    shard, _ = damaged_frames(shards, "fold_1")
    run = copied(crossval[0] / "fold_1", shards.parent / "run")
    refused(here(capsys, "evaluate", run, f"data.shards={shards}"), 3, f"{shard}, clip ", ": expected sha256 ")
    assert result(run) == result(crossval[0] / "fold_1")


# Run folders and clips


def test_a_run_folder_with_other_files(capsys: Capture, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    refused(
        here(capsys, "train", tiny, f"run={tmp_path}"),
        2,
        f"{tmp_path}: expected an empty folder or a run folder",
        "run=",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint(capsys: Capture, crossval: tuple[Path, str], tmp_path: Path) -> None:
    run = copied(crossval[0] / "fold_1", tmp_path / "run")
    path = next(run.glob("checkpoints/*/weights.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    refused(here(capsys, "evaluate", run), 5, "weights.safetensors has ", "Copy them again from their source")


def test_prediction_from_what_is_not_there(capsys: Capture, crossval: tuple[Path, str], tmp_path: Path) -> None:
    run = crossval[0] / "fold_1"
    refused(here(capsys, "predict", crossval[0], tmp_path), 2, f"Give one of its parts: {run}")
    refused(here(capsys, "predict", run, tmp_path), 3, f"{tmp_path}: expected a folder with .jpg, .png, ")


def test_a_bad_clip_among_others_costs_its_own_answer_alone(
    crossval: tuple[Path, str], dfew: Path, tmp_path: Path
) -> None:
    clips = dfew / "raw" / "Clip" / "clip_224x224"
    first, last, bad = clips / "00001", clips / "00002", tmp_path / "bad"
    bad.mkdir()
    for name in ("1.9.jpg", "1.10.jpg"):
        (bad / name).write_bytes(b"")
    done = start("predict", crossval[0] / "fold_1", first, bad, last, "--csv", tmp_path / "answers.csv")
    refused(done, 3, f"expected to read all 3 clips, got 1 that cannot be read: {bad}.")
    assert f"warning: {bad}: expected " in done.stderr and "frames 1.10.jpg and 1.9.jpg" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(first), str(last)]
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["clip", str(first), str(last)]


def test_an_answer_that_cannot_be_written(
    capsys: Capture, crossval: tuple[Path, str], dfew: Path, tmp_path: Path
) -> None:
    clip = dfew / "raw" / "Clip" / "clip_224x224" / "00001"
    table = tmp_path / "nowhere" / "answers.csv"
    refused(
        here(capsys, "predict", crossval[0] / "fold_1", clip, "--csv", table),
        6,
        f"{table}: ",
        "No such file or directory",
    )


# A full disk


def test_a_disk_that_fills_up_in_training(tiny: Path, small_disk: Path, crossval: tuple[Path, str]) -> None:
    run, theirs = small_disk / "run", crossval[0] / "fold_1"
    one = sum(path.stat().st_size for path in next(theirs.glob("checkpoints/*")).iterdir())
    resize(small_disk, one * 5 // 2)
    arguments = ("train", tiny, f"run={run}", "checkpoint.keep_last=99")
    refused(
        start(*arguments),
        6,
        f"{run}/checkpoints/step_",
        "expected to write it, got no space left. Free some.",
        "The same command continues from the last checkpoint.",
    )
    kept = list(run.glob("checkpoints/*"))
    assert kept and [damage(Folder(path)) for path in kept] == [None] * len(kept)
    assert not (run / "results").exists()
    resize(small_disk, one * 20)
    done = finish(*arguments)
    assert f"step {len(kept) + 1}/9" in done.stderr and "step 1/9" not in done.stderr
    assert result(run) == result(theirs)
    assert largest_difference(run, theirs) == 0.0


def test_a_disk_that_is_full_from_the_start(capsys: Capture, tiny: Path, small_disk: Path) -> None:
    resize(small_disk, 4096)
    refused(here(capsys, "train", tiny, f"run={small_disk / 'run'}"), 6, "got no space left. Free some.")
    # What is there is whole: the configuration at most.
    assert [path.name for path in small_disk.glob("run/*")] in ([], ["config.yaml"])
    for path in small_disk.glob("run/config.yaml"):
        assert config_files.load([path], RunConfig).run == str(small_disk / "run")
