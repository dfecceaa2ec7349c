"""Pairs of features: what they depend on, what is refused before and while they are made."""

import os
import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dfer.config import ConfigProblem
from dfer.data.descriptions import described_in
from dfer.data.features import write_manifest
from dfer.data.pictures import PictureFolder
from dfer.errors import CheckpointError, DataError, UsageError
from dfer.inference import set_tf32
from dfer.interruption import Stop
from dfer.jobs import extract, pair_data
from dfer.jobs.extract import ExtractConfig
from dfer.jobs.fit import FitConfig
from dfer.jobs.fitting import check_parts
from dfer.jobs.pair_data import (
    Pairs,
    find_pairs,
    home_of,
    key_of,
    let_go,
    loaded,
    open_source,
    stored_home,
)
from dfer.jobs.pairs import PairsConfig
from dfer.models.config_towers import TowersConfig
from dfer.teacher.build import build_teacher
from dfer.teacher.config import Blip2TeacherConfig, InstructBlipTeacherConfig, WordsTeacherConfig
from dfer.teacher.words import WordsTeacher
from tests.unit.teacher import models

SIDE = 64
CPU = torch.device("cpu")
NAMES = ("00.png", "01.png", "02.png")


def pictures(folder: Path, *lines: str, names: tuple[str, ...] = NAMES) -> Path:
    """A folder of pictures, and its table of descriptions if it has lines."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(1)
    for name in names:
        ok, data = cv2.imencode(".png", draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        assert ok
        (folder / name).write_bytes(data.tobytes())
    if lines:
        (folder / "descriptions.csv").write_text("\n".join(("file,text", *lines)) + "\n")
    return folder


def job(home: Path, **changes: object) -> ExtractConfig:
    pairs = PairsConfig(
        pictures=str(home / "pictures"),
        features=str(home / "features"),
        size=SIDE,
        batch=2,
        workers=0,
        towers=TowersConfig(arch="tiny-vit-64"),
        teacher=WordsTeacherConfig(dim=8),
    )
    return ExtractConfig(run=str(home / "run"), pairs=replace(pairs, **changes))  # type: ignore[arg-type]


def extracted(config: ExtractConfig) -> str:
    """What the job says when it ends."""
    parts = extract.parts(config)
    extract.check(config, parts, [1])
    for part in parts:
        extract.run(config, part, None, Stop())
    return extract.conclude(config)


def test_lost_and_damaged_shards_are_made_again(tmp_path: Path) -> None:
    """By the same command and by another run, to the same bytes; whole shards are not touched."""
    names = tuple(f"{number:02d}.png" for number in range(6))
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in names), names=names)
    config = job(tmp_path)
    extracted(config)
    (home,) = (tmp_path / "features").iterdir()
    whole = {path.name: path.read_bytes() for path in home.iterdir()}
    shards = sorted(home.glob("*.safetensors"))
    assert len(shards) > 3
    for again in (config, replace(config, run=str(tmp_path / "again"), workers=2)):
        kept = shards[3].stat().st_mtime_ns
        shards[0].unlink()
        shards[1].write_bytes(whole[shards[1].name][:-1] + b"x")
        if again is config:  # a launcher starts no part that is done; its conclusion lets it start the next time
            with pytest.raises(
                CheckpointError, match=f"{len(shards)} whole shards, got 2 missing or damaged. The same"
            ):
                extract.conclude(config)
        assert f"{len(names)} pairs" in extracted(again)
        assert {path.name: path.read_bytes() for path in home.iterdir()} == whole
        assert shards[3].stat().st_mtime_ns == kept


def test_models_are_checked_before_a_lost_shard_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in NAMES))
    config, checked = job(tmp_path), list[PairsConfig]()
    extracted(config)
    monkeypatch.setattr(pair_data, "check_tower", checked.append)
    extract.check(config, extract.parts(config), [1])
    assert not checked
    next((tmp_path / "features").rglob("*.safetensors")).unlink()
    extract.check(config, extract.parts(config), [1])
    assert checked == [config.pairs]


def test_a_removed_manifest_is_written_again_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the source of the weights, and no model is loaded."""
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in NAMES))
    config = job(tmp_path)
    extracted(config)
    (manifest,) = (tmp_path / "features").rglob("manifest.json")
    before = manifest.read_text()
    manifest.unlink()
    monkeypatch.delattr(pair_data, "build_teacher")
    extracted(config)
    assert manifest.read_text() == before and '"origin": ""' not in before


# --- descriptions


def test_other_descriptions_are_other_pairs(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", *(f"{name},brow raised" for name in NAMES))
    config = job(tmp_path)
    extracted(config)
    before = find_pairs(config.pairs).features["teacher"]
    pictures(tmp_path / "pictures", *(f"{name},jaw dropped" for name in NAMES))
    with pytest.raises(DataError, match=r"pairs with texts_sha256: [0-9a-f]{60}\.\.\., got texts_sha256"):
        find_pairs(config.pairs)
    extracted(replace(config, run=str(tmp_path / "again")))
    assert not (find_pairs(config.pairs).features["teacher"] == before).all()


def test_descriptions_are_no_part_of_what_a_teacher_of_pictures_depends_on(tmp_path: Path) -> None:
    """Nor are they read for it."""
    pictures(tmp_path / "pictures", "neither one nor the other")
    config = job(tmp_path, teacher=Blip2TeacherConfig()).pairs
    source = open_source(config)
    assert source.texts == [None] * len(NAMES) and "texts_sha256" not in key_of(config, source)


ASKED = "Please play the role of a facial action describer. Objectively describe the detailed facial actions of the "


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (
            {"instruction": f"{ASKED}person in the image."},
            {"instruction": f"{ASKED}woman in the image, and of nobody else in it."},
            r"pairs with teacher\.instruction: \.\.\.actions of the woman in the image, and of nobody else in it\., "
            r"got teacher\.instruction: \.\.\.actions of the person in the image\.\. Make them: dfer extract",
        ),
        ({"revision": "aaaa"}, {}, r"pairs with teacher\.revision: main, got teacher\.revision: aaaa\."),
    ],
)
def test_pairs_of_another_teacher_are_refused_with_the_difference(
    theirs: dict[str, str], ours: dict[str, str], told: str, tmp_path: Path
) -> None:
    pictures(tmp_path / "pictures")
    stored, wanted = (job(tmp_path, teacher=Blip2TeacherConfig(**each)).pairs for each in (theirs, ours))  # type: ignore[arg-type]
    key = key_of(stored, open_source(stored))
    write_manifest(home_of(stored, key), key, [])
    stored_home(stored)
    with pytest.raises(DataError, match=told):
        stored_home(wanted)


TABLES = {
    "00.png,smiles\n01.png\n": r"got a row without a text in line 3: 01.png\. Correct or remove it",
    "00.png,smiles\n01.png,a\n00.png,frowns\n": r"got two rows for 00.png, in lines 2 and 4\.",
    "00.png,brow raised, jaw dropped\n": r"got more values than columns in line 2; a text with commas needs quotes: 00",
    '00.png,"one\ntwo"\n01.png\n': r"a row without a text in line 4: 01.png",
    "00.png,tr\xe8s\n": r"a text that is not UTF-8 in line 2: 00.png",
    "03.png,smiles\n": r"expected names of pictures in this folder, got 1 others \(03.png\)",
}


@pytest.mark.parametrize("rows", TABLES)
def test_a_table_that_does_not_say_one_thing_is_refused(rows: str, tmp_path: Path) -> None:
    folder = PictureFolder.open(pictures(tmp_path / "pictures"))
    (folder.root / "descriptions.csv").write_bytes(f"file,text\n{rows}".encode("latin-1"))
    with pytest.raises(DataError, match=TABLES[rows]):
        described_in(folder)


# --- models


OR_STORED = r", or pairs\.stored=bf16 or as_computed\."


@pytest.mark.parametrize(("stored", "value", "end"), [("fp16", 7e4, OR_STORED), ("as_computed", float("nan"), r"\.")])
def test_features_that_are_not_finite_are_not_stored(
    stored: str, value: float, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "pictures", *(f"{name},{name[:2]}" for name in NAMES))
    row = WordsTeacher._row
    monkeypatch.setattr(WordsTeacher, "_row", lambda self, text: row(self, text) + (value if text == "01" else 0))
    do = rf"Set pairs\.teacher\.precision=bf16 or fp32{end}$"
    with pytest.raises(DataError, match=rf"got NaN or infinity for 1 of 1 \(01\.png\)\. {do}"):
        extracted(job(tmp_path, stored=stored))
    assert [path.name[:5] for path in (tmp_path / "features").rglob("*.safetensors")] == ["00000"]


@pytest.mark.parametrize("on", ["extract", "fit"])
def test_a_size_that_clip_does_not_take_is_told_before_it_is_built(on: str, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in NAMES))
    pairs = job(tmp_path, size=SIDE + 4).pairs
    with pytest.raises(
        UsageError, match=r"pairs.size: expected 64 pixels, as tiny-vit-64 takes, got 68\. Set pairs.size"
    ):
        if on == "extract":
            extracted(job(tmp_path, size=SIDE + 4))
        else:
            check_parts([FitConfig(run=str(tmp_path / "fit"), pairs=pairs, on="pictures", batch=2)])


def test_both_models_compute_without_tf32(tmp_path: Path) -> None:
    """Else features on a GPU differ from those on a CPU by far more than 1e-5."""
    pictures(tmp_path / "pictures")
    set_tf32(True)
    Pairs(job(tmp_path).pairs, torch.device("cpu"))
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.slow("transformers is imported")
def test_all_instructions_of_a_process_share_one_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are those of a teacher of the instruction's own."""
    built: list[object] = []
    monkeypatch.setattr(pair_data, "build_teacher", lambda *words: built.append(words) or build_teacher(*words))
    seen = torch.zeros(2, 3, models.SIDE, models.SIDE, dtype=torch.uint8)
    teacher = InstructBlipTeacherConfig(model=str(models.blip("instruct_blip", tmp_path / "teacher")), precision="fp32")
    configs = [
        job(tmp_path, teacher=replace(teacher, instruction=text)).pairs for text in ("the image", "facial actions")
    ]
    found = [loaded(config, CPU).taught(seen, [])["teacher"] for config in (*configs, configs[0])]
    assert len(built) == 1 and not torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    let_go()
    assert torch.equal(found[1], Pairs(configs[1], CPU).taught(seen, [])["teacher"])
    loaded(replace(configs[0], teacher=replace(teacher, precision="bf16")), CPU)
    assert len(built) == 3
    let_go()


def test_the_parts_of_a_process_share_both_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in NAMES))
    built: list[object] = []
    monkeypatch.setattr(pair_data, "build_teacher", lambda *words: built.append(words) or build_teacher(*words))
    config = replace(job(tmp_path), workers=3)
    assert len(extracted(config).splitlines()) == 1 and len(built) == 1
    first = loaded(config.pairs, torch.device("cpu"))
    assert loaded(config.pairs, torch.device("cpu")) is first and len(built) == 2
    left = weakref.ref(first)
    del first
    loaded(job(tmp_path, batch=3).pairs, torch.device("cpu"))
    assert left() is None
    let_go()


SWEEPS = {
    "blip2": (("a", "b", "a"), r"instruction: expected each value once, got a, b, a\. Correct it in sweep"),
    "words": (("a",), r"sweep\.instruction: expected a teacher that takes instructions, got words\. Leave it out\."),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_means_nothing_is_refused(name: str) -> None:
    asked = f"sweep.instruction=[{', '.join(SWEEPS[name][0])}]"
    words = ["job=extract", "run=run", "pairs.pictures=p", "pairs.features=f", f"pairs.teacher.name={name}", asked]
    with pytest.raises(ConfigProblem, match=SWEEPS[name][1]):
        extract.load([], words)


# --- folders


@pytest.mark.parametrize("to", ["..", "../..", "."])
def test_a_link_to_a_folder_around_it_is_refused(to: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    (folder / "a").mkdir()
    (folder / "a" / "loop").symlink_to(to)
    with pytest.raises(DataError, match=r"pictures/a/loop: expected links to folders that do not contain them, got"):
        PictureFolder.open(folder)


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere")
    pictures(tmp_path / "pictures", names=("own.png",))
    (tmp_path / "pictures" / "joy").symlink_to("../elsewhere")
    assert PictureFolder.open(tmp_path / "pictures").names == (*(f"joy/{name}" for name in NAMES), "own.png")


def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    pictures(tmp_path / "pictures", names=("00.png", name))
    rows = b"file,text\n\xff.png,brow raised\n00.png,jaw dropped\n"
    (tmp_path / "pictures" / "descriptions.csv").write_bytes(rows)
    config = job(tmp_path)
    assert "2 pairs (student 96, teacher 8)" in extracted(config)
    assert find_pairs(config.pairs).keys == ["00.png", name]


@pytest.mark.parametrize("on", ["extract", "fit"])
def test_an_architecture_that_is_refused_is_named_before_anything_is_built(on: str, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", *(f"{name},smiles" for name in NAMES))
    asked = job(tmp_path, towers=TowersConfig(arch="coca_ViT-B-32"))
    with pytest.raises(
        ConfigProblem, match=r"^pairs\.towers\.arch: expected a causal text tower .* got 'coca_ViT-B-32'"
    ):
        if on == "extract":
            extracted(asked)
        else:
            check_parts([FitConfig(run=str(tmp_path / "fit"), pairs=asked.pairs, on="pictures", batch=2)])
