"""The command line: exit codes, messages without a traceback, tables."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfer.store.format import FrameSettings, Manifest
from shards import __main__ as cli
from shards.show import count_table, describe
from shards.totals import TOTALS, renumbered
from tests.unit.shards import rawkit


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return rawkit.dfew(tmp_path / "DFEW")


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments)])


def build(raw: Path, out: Path, *more: object) -> int:
    return run("build", "dfew", raw, out, "--jobs", 1, "--no-progress", *more)


def test_build_verify_show(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(raw, tmp_path / "out") == 0
    made = capsys.readouterr().out
    assert re.search(r"5 shards made, 0 up to date, \d+ frames in .* frames/s\)", made)
    assert build(raw, tmp_path / "out") == 0
    assert "nothing to do, all 5 shards are up to date" in capsys.readouterr().out
    assert run("verify", tmp_path / "out", "--jobs", 1, "--no-progress") == 0
    assert "5 shards, 10 clips, 40 frames: hashes, tar members, labels agree" in capsys.readouterr().out
    assert run("show", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert made.startswith(shown.out.rstrip("\n"))
    assert "all" in shown.out
    assert shown.err == ""


def test_dry_run_writes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(raw / "Clip/clip_224x224/00004")
    assert build(raw, tmp_path / "out", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "10 clips in the split files, 36 frames" in text
    assert "clips without frames: 1\n  00004: no folder" in text
    assert not (tmp_path / "out").exists()


def test_missing_clips_stop_the_build(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(raw / "Clip/clip_224x224/00004")
    for flags in ((), ("--strict",), ("--allow-missing", 0)):
        assert build(raw, tmp_path / "out", *flags) == 3
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "  00004: no folder" in error
    assert build(raw, tmp_path / "out", "--allow-missing", 1) == 0
    assert "clips left out: 1\n  00004: no folder" in capsys.readouterr().out


def test_raw_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, tmp_path / "out") == 3
    assert "expected DFEW's split files at EmoLabel_DataSplit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show"], ["verify", "--no-progress"]):
        assert run(*command, tmp_path) == 3
        assert "expected a folder of shards with its manifest.json, got none there" in capsys.readouterr().err


def test_damage_found_by_verify(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(raw, tmp_path / "out") == 0
    (tmp_path / "out/fold_1/00000.tar").unlink()
    assert run("verify", tmp_path / "out", "--jobs", 1, "--no-progress") == 3
    assert "fold_1/00000.tar: missing" in capsys.readouterr().err


def test_whole_pictures_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = rawkit.mafw(tmp_path / "MAFW", faces="data/frames")
    assert run("build", "mafw", root, tmp_path / "out", "--dry-run", "--jobs", 1, "--no-progress") == 0
    assert capsys.readouterr().err.startswith("warning: ")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_manifest", interrupted)
    assert run("show", tmp_path) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err


def test_output_into_a_closed_pipe(raw: Path, tmp_path: Path) -> None:
    assert build(raw, tmp_path / "out") == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "shards", "show", tmp_path / "out"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_shards_are_built_without_torch() -> None:
    script = "import sys, shards.__main__, shards.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build", "dfwe", "a", "b"], "invalid choice: 'dfwe'"),
        (["build", "dfew", "a", "b", "--jobs", "0"], "expected a number of at least 1, got 0"),
        (["build", "dfew", "a", "b", "--jobs", "two"], "expected a whole number, got 'two'"),
        (["build", "dfew", "a", "b", "--strict", "--allow-missing", "2"], "not allowed with argument"),
        (["build", "dfew", "a", "b", "--part", "2/3", "--finish", "3"], "not allowed with argument"),
        (["build", "dfew", "a", "b", "--part", "2/3", "--dry-run"], "not allowed with argument"),
        (["build", "dfew", "a", "b", "--part", "4/3"], "expected K/N, K from 1 to N and N at most 10000, such as 2/3"),
        (["build", "dfew", "a", "b", "--part", "0/3"], "got '0/3'"),
        (["build", "dfew", "a", "b", "--part", "2"], "got '2'"),
        (["build", "dfew", "a", "b", "--part", "/8"], "got '/8'"),
        (["build", "dfew", "a", "b", "--finish", "0"], "expected a number of at least 1, got 0"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("command", ["synth", "build", "verify", "show"])
def test_help_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    examples = re.findall(r"^  dfer-shards (.+?)(?:   .*)?$", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for example in examples:
        cli._parser().parse_args(example.split())


def test_the_help_of_build_shows_a_slurm_array_whose_commands_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["build", "--help"])
    text = capsys.readouterr().out.split("over several hosts:")[1]
    assert "--array=1-8 " in text and "--dependency=afterany:$job" in text
    part, finish = re.findall(r"'dfer-shards (.+?)'", text.replace("$SLURM_ARRAY_TASK_ID", "8"))
    assert str(cli._parser().parse_args(part.split()).part) == "8/8"
    assert cli._parser().parse_args(finish.split()).finish == 8


@pytest.mark.slow("draws and packs a set of generated faces")
def test_synth_is_reached(tmp_path: Path) -> None:
    assert run("synth", "dfew", tmp_path / "raw", "--clips", 35, "--size", 32, "--jobs", 1, "--no-progress") == 0
    assert build(tmp_path / "raw", tmp_path / "out") == 0


@pytest.mark.slow("draws and packs a set of generated faces")
def test_generated_faces_are_not_shown_as_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    assert run("synth", "dfew", raw, "--clips", 35, "--seed", 4, "--size", 32, "--jobs", 1, "--no-progress") == 0
    assert build(raw, tmp_path / "out", "--dry-run") == 0
    assert build(raw, tmp_path / "out") == 0
    assert run("show", tmp_path / "out") == 0
    dry, built, shown = re.split(r"(?m)^(?=generated faces in dfew's layout)", capsys.readouterr().out)[1:]
    assert f"dfew's layout in {raw}: 35 clips in the split files" in dry
    for text in (built, shown):
        assert text.startswith("generated faces in dfew's layout: 35 clips, ")
        assert "generated seed 4, generator 1" in text
    for text in (dry, built, shown):
        assert "generated faces: no published counts to compare with" in text
        assert not re.search(r"\d/\d", re.split(r"no published counts", text)[0].split("all\n")[1])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["dataset"], manifest["options"]["generated"]) == ("dfew", "seed 4, generator 1")


@pytest.mark.parametrize("name", ["synthetic.json", "DFEW/synthetic.json", "synthetic.part.json"])
def test_the_record_of_generated_faces_is_found_and_checked(
    name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(raw, tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("dfew in ")
    (raw / name).parent.mkdir(exist_ok=True)
    (raw / name).write_text('{"seed": 8, "generator": 2}')
    assert build(raw, tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("generated faces in dfew's layout in ")
    (raw / name).write_text("[]")
    assert build(raw, tmp_path / "out", "--dry-run") == 3
    assert f"{name}: expected the record of generated faces, a JSON object, got []" in capsys.readouterr().err


def test_published_totals_have_the_published_sums() -> None:
    sums = {dataset: sum(map(sum, rows.values())) for dataset, rows in TOTALS.items()}
    stills = {
        "raf_db": 12_271 + 3_068,
        "affectnet": 287_651 + 4_000,
        "fer2013": 28_709 + 3_589 + 3_589,
        "ckplus": 981,
        "ckplus48": 981,
        "kmu_fed": 1_100,
    }
    assert sums == {"dfew": 11_697, "ferv39k": 38_935, "mafw": 9_172, "afew": 773 + 383} | stills
    per_class = {
        dataset: [sum(column) for column in zip(*rows.values(), strict=True)] for dataset, rows in TOTALS.items()
    }
    assert per_class["dfew"] == [2445, 1894, 2669, 2173, 1469, 145, 902]
    assert per_class["ferv39k"] == [7327, 6916, 9748, 7393, 3140, 2300, 2111]
    assert per_class["mafw"] == [1242, 1470, 1138, 1390, 1072, 639, 625, 236, 916, 262, 182]
    assert sum(TOTALS["ferv39k"]["train"]) == 31_088
    assert [sum(row) for row in TOTALS["mafw"].values()] == [1839, 1837, 1833, 1832, 1831]
    assert [sum(row) for row in TOTALS["dfew"].values()] == [2341, 2341, 2340, 2339, 2336]


@pytest.mark.parametrize("dataset", sorted(TOTALS))
def test_the_published_counts_are_recognised(dataset: str) -> None:
    classes = [f"c{i}" for i in range(11)][: len(next(iter(TOTALS[dataset].values())))]
    table = count_table(dataset, classes, TOTALS[dataset])
    assert table.endswith("all counts as published")
    assert "/" not in table
    assert renumbered(dataset, TOTALS[dataset]) is None


def test_differences_are_marked() -> None:
    counts = dict(TOTALS["ferv39k"]) | {"test": (1473, 1393, 1958, 1487, 638, 467, 430)}
    table = count_table("ferv39k", ["a"] * 7, counts)
    assert "430/431" in table
    assert "7846/7847" in table
    assert "38934/38935" in table
    assert "class counts that differ: 1" in table
    assert "partitions not here: train" in count_table("ferv39k", ["a"] * 7, {"test": counts["test"]})
    assert "no published counts known" in count_table("other", ["a"], {"train": (3,)})


def test_counts_in_another_class_order_are_recognised() -> None:
    rows = dict(TOTALS["dfew"])
    rows["fold_3"] = tuple(reversed(rows["fold_3"]))
    assert renumbered("dfew", rows) == "fold_3"
    rows["fold_3"] = (1, *rows["fold_3"][1:])
    assert renumbered("dfew", rows) is None


def test_an_empty_data_set_can_be_shown() -> None:
    frames = FrameSettings(max_side=1, quality=1, kept=0, encoded=0)
    manifest = Manifest(dataset="dfew", classes=("a",) * 7, builder="x", frames=frames, counts={}, shards=())
    assert describe(manifest).startswith("dfew: 0 clips, 0 frames, 0 bytes in 0 shards")
