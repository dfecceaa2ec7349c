"""A fit of a projection head: number formats, other pairs than it was begun with, what is measured, its table."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dfer.__main__ import main
from dfer.config import ConfigProblem, to_yaml
from dfer.data.features import FeatureSet, write_manifest, write_shard
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, NonFiniteLossError, UsageError
from dfer.interruption import Stop
from dfer.jobs import fit as job
from dfer.jobs.extract import ExtractConfig
from dfer.jobs.fit import FitConfig
from dfer.jobs.fit_measures import measured, measured_on, split
from dfer.jobs.fitting import fit
from dfer.jobs.pair_data import DTYPES, home_of, key_of, open_source
from dfer.jobs.pairs import PairsConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.head_file import made_for
from dfer.models.projection import STUDENT, TEACHER
from dfer.report.fits import write_fits
from dfer.storage import Folder
from dfer.teacher.config import Blip2TeacherConfig, WordsTeacherConfig
from dfer.training.config import GroupConfig, SgdConfig

PAIRS, SIDE = 40, 64


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def pictures(folder: Path, seed: int = 1) -> Path:
    """A folder of described pictures; the sizes of the files depend on the seed."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = ["file,text"]
    for number in range(PAIRS):
        assert cv2.imwrite(f"{folder}/{number:03d}.png", draw.integers(0, 256, (20 + seed, 24, 3), dtype=np.uint8))
        lines.append(f"{number:03d}.png,brow {'raised lip' if number % 3 else 'jaw'} {number}")
    (folder / "descriptions.csv").write_text("\n".join(lines) + "\n")
    return folder


def config(tmp_path: Path, **changes: Any) -> FitConfig:
    own = {
        "pictures": f"{tmp_path}/pictures",
        "features": f"{tmp_path}/features",
        "size": SIDE,
        "workers": 0,
        "towers": TowersConfig(arch="tiny-conv-64"),
        "teacher": WordsTeacherConfig(dim=8),
    }
    pairs = PairsConfig(**{**own, **changes.pop("pairs", {})})
    return FitConfig(**{"run": f"{tmp_path}/run/fit", "pairs": pairs, "batch": 20, "epochs": 1, **changes})


def store(config: PairsConfig, rows: int = PAIRS, seed: int = 1) -> None:
    """Store pairs of random features under the key of the configuration."""
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 6, generator=draw)
    teacher = student @ torch.randn(6, 8, generator=draw)
    key = key_of(config, open_source(config))
    features = {STUDENT: student.to(DTYPES[config.stored]), TEACHER: teacher.to(DTYPES[config.stored])}
    home = home_of(config, key)
    shard = write_shard(home, 0, features, keys=[f"{row:03d}.png" for row in range(rows)])
    write_manifest(home, key, [shard])


def head_of(asked: FitConfig) -> torch.Tensor:
    found: torch.Tensor = torch.load(f"{asked.run}/head/ExpCLIP_head.pth", weights_only=True)["mlp.weight"]
    return found


# --- number formats


@pytest.mark.parametrize("on", ["features", "pictures"])
@pytest.mark.parametrize("stored", DTYPES)
def test_every_stored_number_format_is_fitted(stored: str, on: Any, tmp_path: Path, alone: World) -> None:
    pictures(tmp_path / "pictures")
    asked = config(tmp_path, on=on, pairs={"stored": stored})
    if on == "features":
        store(asked.pairs)
    found = fit(asked, alone, Stop())
    head = head_of(asked)
    assert found["steps"] == 2 and head.dtype == torch.float32 and head.isfinite().all()
    if on == "features" and stored != "as_computed":
        full = replace(asked, run=f"{tmp_path}/full", pairs=replace(asked.pairs, stored="as_computed"))
        store(full.pairs)
        fit(full, alone, Stop())
        assert torch.allclose(head_of(full), head, atol=1e-3) and not torch.equal(head_of(full), head)


# --- what draws at random


def recorded(asked: FitConfig) -> tuple[str, list[dict[str, Any]]]:
    """The head's bytes, and all losses and accuracies that a fit told."""
    lines = [json.loads(line) for line in Path(asked.run, "metrics.jsonl").read_text().splitlines()]
    numbers = [{k: v for k, v in line.items() if k in ("kind", "loss", "accuracy", "top1")} for line in lines]
    return Path(asked.run, "head/head.safetensors").read_bytes().hex(), numbers


@pytest.mark.slow("transformers is imported; fits on pictures")
@pytest.mark.parametrize("kind", ["flip", "dropout"])
def test_mirrored_pictures_and_a_noisy_teacher_repeat(kind: str, tmp_path: Path, alone: World) -> None:
    """What is told of a fit, too: a teacher with dropout draws from the seed."""
    from tests.unit.teacher import models

    pictures(tmp_path / "pictures")
    teacher = Blip2TeacherConfig(model=str(models.blip("blip2", tmp_path / "blip")), precision="fp32")
    size = {
        "size": models.SIDE,
        "towers": TowersConfig(arch="tiny-vit-64", image_size=models.SIDE),
        "teacher": teacher,
    }
    plain = config(tmp_path, on="pictures", pairs=size)
    other = replace(plain, run=f"{tmp_path}/once", flip=0.5)
    if kind == "dropout":
        noisy = replace(plain.pairs, teacher=replace(teacher, dropout=True))
        other = replace(plain, run=f"{tmp_path}/once", pairs=noisy)
    found = []
    for number, asked in enumerate((plain, other, replace(other, run=f"{tmp_path}/again"))):
        torch.manual_seed(number)  # a process begins with a state of its own
        told = fit(asked, alone, Stop())
        found.append((*recorded(asked), told["loss"], told["accuracy"]))
    assert found[1] == found[2] and found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_what_changes_is_not_stored(tmp_path: Path) -> None:
    noisy = Blip2TeacherConfig(dropout=True)
    with pytest.raises(ConfigProblem, match=r"got pairs\.teacher\.dropout\. Set on=pictures, or leave it out"):
        config(tmp_path, on="features", pairs={"teacher": noisy})
    with pytest.raises(ConfigProblem, match=r"features do not change, got dropout=true\. Set"):
        ExtractConfig(run=str(tmp_path), pairs=config(tmp_path, on="pictures", pairs={"teacher": noisy}).pairs)


# --- other pairs


def test_a_fit_of_other_pairs_is_refused_and_a_moved_folder_is_not(tmp_path: Path, alone: World) -> None:
    pictures(tmp_path / "pictures")
    pictures(tmp_path / "other", seed=2)
    asked = config(tmp_path)
    other = replace(asked, pairs=replace(asked.pairs, pictures=f"{tmp_path}/other"))
    store(asked.pairs)
    store(other.pairs, seed=2)
    first = fit(asked, alone, Stop())
    said = r"the pairs it was begun with, source_sha256: [0-9a-f]{64}, got source_sha256: [0-9a-f]{64}\. Set `pairs`"
    whole, part = replace(other, run=f"{tmp_path}/run"), job.Part(name="fit", run=other.run)
    for longer in (0, 1):  # a finished fit, and one that would go on from its checkpoint
        with pytest.raises(CheckpointError, match=said):
            fit(replace(other, epochs=1 + longer), alone, Stop())
        with pytest.raises(CheckpointError, match=said):
            job.check(replace(whole, epochs=1 + longer), [part], [1])
    (tmp_path / "run" / "fit" / "results" / "fit.json").unlink()  # killed before its result
    with pytest.raises(CheckpointError, match=said):
        job.check(whole, [part], [1])
    (tmp_path / "pictures").rename(tmp_path / "moved")
    moved = replace(asked, pairs=replace(asked.pairs, pictures=f"{tmp_path}/moved"))
    again = fit(moved, alone, Stop())
    assert again["loss"] == first["loss"] and fit(replace(moved, epochs=2), alone, Stop())["steps"] == 4


def test_a_finished_fit_stands_without_its_pictures(tmp_path: Path, alone: World) -> None:
    pictures(tmp_path / "pictures")
    asked = config(tmp_path)
    store(asked.pairs)
    first = fit(asked, alone, Stop())
    (tmp_path / "pictures").rename(tmp_path / "gone")
    whole, part = replace(asked, run=f"{tmp_path}/run"), job.Part(name="fit", run=asked.run)
    job.check(whole, [part], [1])
    assert fit(asked, alone, Stop()) == first
    with pytest.raises(Exception, match="expected a folder with"):
        job.check(replace(whole, epochs=2), [part], [1])


# --- a sweep


def test_a_part_that_fails_does_not_cost_the_table_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures")
    asked = config(tmp_path, run=f"{tmp_path}/run", sweep=job.SweepConfig(lr=(1e38, 0.001)))
    store(asked.pairs)
    (tmp_path / "fit.yaml").write_text(to_yaml(asked))
    assert main(["fit", f"{tmp_path}/fit.yaml"]) == NonFiniteLossError.exit_code
    out, err = capsys.readouterr()
    assert "lr_1e38: failed, " in err and "lr_0.001: loss " in out
    assert "1 of 2 parts; the same command fits the others" in out and err.rstrip().splitlines()[-1].startswith("error")


# --- what is measured


def test_what_is_measured_depends_on_neither_batch_nor_order_of_names(tmp_path: Path) -> None:
    keys = [f"{at:05d}" for at in range(3000)]
    asked = config(tmp_path, batch=64)
    kept, held = split(asked, keys)
    assert kept == [*range(3000)] and len({*held}) == 2048 and held != sorted(held)
    assert min(sum(at // 1000 == third for at in held[:512]) for third in range(3)) > 100, "every gallery is a sample"
    assert split(replace(asked, batch=512), keys)[1] == held and split(replace(asked, seed=2), keys)[1] != held
    kept, held = split(replace(asked, val_share=0.3), keys)
    assert len(held) == 512 and not {*kept} & {*held}, "the last, smaller gallery of some 900 is left out"
    assert len(kept) == pytest.approx(2100, abs=16) and held != sorted(held)
    assert len(split(asked, keys[:100])[1]) == 100, "one gallery, though smaller, is not left out"
    with pytest.raises(UsageError, match=r"batch: expected at most the 50 pairs, got 64"):
        split(asked, keys[:50])


def test_accuracy_is_sought_among_512_pairs_whatever_the_batch(tmp_path: Path, alone: World) -> None:
    weight, rows = torch.eye(1024), torch.eye(1024)
    second = torch.cat([rows[:512], rows[512:].roll(1, 0)])
    pairs = FeatureSet(features={STUDENT: rows, TEACHER: second}, keys=[f"{at}" for at in range(1024)])
    found = [measured(weight, pairs, config(tmp_path, batch=batch), alone) for batch in (8, 512)]
    assert found[0] == found[1] and found[0]["accuracy"] == 0.5
    assert measured_on(config(tmp_path, val_share=0.1), 1024) == "1,024 held-out pairs, 512 at a time"
    assert measured_on(config(tmp_path), 40) == "40 fitted pairs, 40 at a time"


def test_every_step_records_its_own_accuracy_and_the_table_the_last_epochs(tmp_path: Path, alone: World) -> None:
    pictures(tmp_path / "pictures")
    optim = SgdConfig(groups={"head": GroupConfig(lr=0.05)})
    asked = config(tmp_path, batch=PAIRS, epochs=3, optim=optim)
    store(asked.pairs)
    found = fit(asked, alone, Stop())
    records = [json.loads(line) for line in Path(asked.run, "metrics.jsonl").read_text().splitlines()]
    steps = [record["accuracy"] for record in records if record["kind"] == "train"]
    evals = [record["accuracy"] for record in records if record["kind"] == "eval"]
    assert steps[1:] == evals[:2] and len(steps) == 3, "all pairs are one step: a step sees what was measured before it"
    made = made_for(Path(asked.run, "head", "head.safetensors"))
    assert made and (made.arch, made.weights) == ("tiny-conv-64", "random, seed 1")
    assert found["train_accuracy"] == steps[2] and len({*steps}) > 1
    table = job.conclude(replace(asked, run=f"{tmp_path}/run"))
    assert "train accuracy" in table and f"{100 * steps[2]:.2f} %" in table and "40 fitted pairs, 40 at a time" in table
    assert f"{steps[2]:.2%} in the steps of the last epoch" in Path(asked.run, "head", "README.md").read_text()
    half = fit(replace(asked, run=f"{tmp_path}/half", batch=PAIRS // 2), alone, Stop())
    lines = Path(tmp_path, "half", "metrics.jsonl").read_text().splitlines()
    last = [each["accuracy"] for each in map(json.loads, lines) if each["kind"] == "train"][-2:]
    assert half["train_accuracy"] == pytest.approx(sum(last) / 2)


def test_parts_are_named_after_all_digits_and_equal_values_are_refused(tmp_path: Path) -> None:
    sweep = job.SweepConfig(temperature=(0.01, 0.010000001), batch=(512,), lr=(1.0, 1e-05, 1e22))
    names = [part.name for part in job.parts(config(tmp_path, sweep=sweep))]
    assert len({*names}) == 6 and names[0] == "temperature_0.01_batch_512_lr_1"
    assert "temperature_0.010000001_batch_512_lr_1e-05" in names and names[2].endswith("lr_1e22")
    for values in ((0.01, 0.010), (1, 1.0)):
        with pytest.raises(ConfigProblem, match=r"lr: expected each value once, got .*\. Correct it in sweep"):
            job.SweepConfig(lr=values)


def test_instructions_are_listed_under_the_table(tmp_path: Path) -> None:
    settings = {"batch": 20, "head": {"temperature": 0.01}, "optim": {"groups": {"head": {"lr": 0.001}}}}
    row = {"epochs": 1, "steps": 2, "loss": 1.0, "accuracy": 0.5, "of": "20 fitted pairs", "seconds": 1.0}
    rows = {f"instruction_{number}": {**row, "settings": settings} for number in (1, 2)}
    said = ("Describe the *face*.", "Which emotion?")
    text = write_fits(Folder(tmp_path), rows, of=2, instructions=said)
    assert text.endswith("instruction_1: Describe the *face*.\ninstruction_2: Which emotion?")
    assert "–" in text, "a result of an older fit has no train accuracy"
    page = (tmp_path / "report" / "fits.md").read_text()
    assert "- instruction" in page and "Which emotion?" in page
