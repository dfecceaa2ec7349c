"""A paper's numbers stay beside a run only while the run is what they describe."""

from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.other import TESTED
from dfer.jobs.published import DECIDING, PLACES, departures
from dfer.overrides import hints, options

DFER_CLIP = ("methods/dfer_clip", "sets/dfew")
ZERO_SHOT = ("methods/zero_shot_face", "sets/dfew")
EXP_CLIP = ("methods/exp_clip_b32", "sets/dfew")
VGG = ("methods/vgg19", "sets/fer2013")
LEAKING = ("methods/clivp_fer_true_label", "sets/kmu_fed")


@pytest.mark.parametrize(
    ("configs", "override"),
    [
        (ZERO_SHOT, "model.head=ExpCLIP_B32_model.pth"),
        (ZERO_SHOT, "model.towers.pretrained=laion2b_s34b_b79k"),
        (ZERO_SHOT, "model.towers.pretrained=null"),
        (EXP_CLIP, "model.head=runs/fit/head.safetensors"),
        (EXP_CLIP, "model.head=null"),
        (VGG, "data.protocol=public"),
        (VGG, "optim.groups.network.lr=0.1"),
        (VGG, "schedule.rate=0.5"),
        (VGG, "engine.clip_value=null"),
        (VGG, "data.views=null"),
        (("ckplus48/vgg19",), "data.protocol=subjects"),
        (LEAKING, "model.caption=zero_shot"),
        (LEAKING, "early_stop=null"),
        (DFER_CLIP, "model.temporal.depth=2"),
        (DFER_CLIP, "data.join=[data/mafw]"),
        (DFER_CLIP, "data.classes=[happiness,sadness]"),
        (DFER_CLIP, "data.augment.flip=0"),
        (DFER_CLIP, "data.sampling=dk_clip"),
        (DFER_CLIP, "data.frames=8"),
        (DFER_CLIP, "data.balance=0.5"),
        (DFER_CLIP, "epochs=1"),
        (DFER_CLIP, "batch=96"),
        (DFER_CLIP, "ema=0.999"),
    ],
)
def test_numbers_that_do_not_describe_the_run_are_dropped(configs: tuple[str, ...], override: str) -> None:
    assert load_run(configs).published is not None
    assert load_run(configs, [override]).published is None


@pytest.mark.parametrize(
    "override",
    [
        "data.shards=s3://bucket/dfew",
        "data.workers=8",
        "seed=7",
        "fold=3",
        "run=elsewhere",
        "micro_batch=8",
        "engine.precision=bf16",
        "select=best_on_test",
        "model.start=imported/dfer_clip",
        "model.towers.pretrained=weights/ViT-B-32.pt",
        "epochs=50",
    ],
)
def test_numbers_stay_where_only_places_and_the_way_of_computing_change(override: str) -> None:
    assert load_run(DFER_CLIP, [override]).published == load_run(DFER_CLIP).published


def test_the_released_head_may_lie_anywhere() -> None:
    found = load_run(EXP_CLIP, ["model.head=ExpCLIP_B32_model.pth"]).published
    assert found is not None and found == load_run(EXP_CLIP).published


@pytest.mark.parametrize("configs", [DFER_CLIP, ZERO_SHOT, EXP_CLIP, ("methods/zero_shot_face", "sets/affectnet8")])
def test_a_row_s_numbers_name_its_shards(configs: tuple[str, ...]) -> None:
    run = load_run(configs)
    assert run.published is not None and run.data.shards == f"data/{run.published.dataset}"


def test_numbers_that_somebody_wrote_stay(tmp_path: Path) -> None:
    """In a file of their own, or on the command line, though they may be those of the row."""
    own = load_run(DFER_CLIP).published
    assert own is not None
    (tmp_path / "mine.yaml").write_text(
        "base: [methods/dfer_clip, sets/dfew]\nrun: x\npublished: {war: 70.5, source: a table}\n"
    )
    kept = load_run([tmp_path / "mine.yaml"], ["model.temporal.depth=2"]).published
    assert kept is not None and kept.war == 70.5
    again = f"published={{uar: {own.uar}, war: {own.war}, source: '{own.source}', selection: {own.selection}}}"
    assert load_run(DFER_CLIP, ["epochs=1", again]).published == replace(own, dataset="")
    assert load_run(DFER_CLIP, ["published=null"]).published is None


def test_a_paper_s_recalls_do_not_stand_beside_scores_of_the_user_s() -> None:
    dk_clip = ("methods/dk_clip", "sets/dfew")
    assert load_run(dk_clip).published.recall  # type: ignore[union-attr]
    own = load_run(dk_clip, ["published.uar=64.8"]).published
    assert own is not None and (own.uar, own.recall, own.dataset) == (64.8, {}, "")
    with_recall = load_run(dk_clip, ["published.uar=64.8", "published.recall.fear=40"]).published
    assert with_recall is not None and with_recall.recall == {"fear": 40.0}


def test_departures_name_the_keys() -> None:
    own = {"epochs": 50, "seed": 1, "data": {"views": None, "shards": "a"}, "model": {"start": None}}
    now = {"epochs": 5, "seed": 2, "data": {"views": {"crops": 3}, "shards": "b"}, "model": {"start": "r", "depth": 2}}
    assert departures(own, now) == ["epochs", "data.views.crops", "model.depth"]


NEITHER = {
    "job",
    "workers",
    "run",
    "seed",
    "seeds",
    "fold",
    "micro_batch",
    "eval_batch",
    "eval_every",
    "log_every",
    "record_clips",
    "select",
    "val_share",
    "rank_mean",
    "data.shards",
    "data.workers",
    "data.canonical_partitions",
    "data.cache",
    "data.cache_gib",
    "data.read_ahead",
    "data.max_bad_share",
    "data.features",
    "engine.name",
    "engine.zero",
    "engine.precision",
    "engine.tf32",
    "checkpoint",
    "published",
}
"""Keys that do not decide whether a paper's number stands. A new key stands here, or in DECIDING."""


def keys(kind: Any, above: str = "") -> Iterator[str]:
    """Dotted keys of a configuration, also those above others and those of every dataclass of a union."""
    for name, hint in hints(kind).items():
        yield f"{above}{name}"
        for option in filter(is_dataclass, options(hint)):
            yield from keys(option, f"{above}{name}.")


def stands_in(name: str, listed: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in listed)


def test_every_key_decides_or_does_not() -> None:
    every = [*dict.fromkeys(keys(RunConfig))]
    lowest = [name for name in every if not any(other.startswith(f"{name}.") for other in every)]
    assert {"data.frames", "optim.groups", "model.towers.arch", "published.uar"} <= {*lowest}
    assert [name for name in lowest if stands_in(name, DECIDING) == stands_in(name, NEITHER)] == []


def test_no_listed_key_is_gone() -> None:
    listed = {*DECIDING, *PLACES, *NEITHER, *TESTED}
    assert listed - {*keys(RunConfig)} == set()
    assert all(stands_in(place, DECIDING) for place in PLACES)
