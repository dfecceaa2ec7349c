"""The rows of CLIVP-FER and of the CNNs: recipes and numbers typed from the pages of their releases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from dfer.distributed import World
from dfer.emotions import BASIC7
from dfer.jobs.config import load_run
from dfer.jobs.describe import describe
from dfer.jobs.rows import ROWS, Row
from dfer.models.config_clivp_fer import ClivpFerConfig, CnnConfig
from dfer.training.config import AdamConfig, EarlyStopConfig, SgdConfig
from tests.unit.data.shardkit import Clip, write_shards

WAR = {
    ("vgg19", "fer2013"): 73.112,
    ("resnet18", "fer2013"): 72.973,
    ("vgg19", "ckplus48"): 94.646,
    ("resnet18", "ckplus48"): 94.040,
    ("clivp_fer_true_label", "kmu_fed"): 97.364,
    ("clivp_fer_true_label", "fer2013"): 99.01,
    ("clivp_fer_true_label", "raf_db"): 99.22,
}
# (epoch, rate): FER2013 drops first at epoch 85, CK+ at epoch 21, counted from 0.
RATES = {
    "fer2013": ((0, 1e-2), (84, 1e-2), (85, 9e-3), (89, 9e-3), (90, 8.1e-3), (249, 1e-2 * 0.9**33)),
    "ckplus48": ((0, 1e-2), (20, 1e-2), (21, 8e-3), (22, 6.4e-3), (59, 1e-2 * 0.8**39)),
}


def parts(row: Row) -> tuple[str, str]:
    method, data = row.configs
    return method.removeprefix("methods/"), data.removeprefix("sets/")


def rows(kind: type) -> list[Row]:
    found = [row for row in ROWS if len(row.configs) == 2 and parts(row)[0].startswith(("clivp", "vgg", "resnet"))]
    return [row for row in found if isinstance(load_run(row.configs).model, kind)]


def test_the_published_numbers_and_how_they_were_chosen() -> None:
    found = {parts(row): row.published for row in (*rows(CnnConfig), *rows(ClivpFerConfig)) if row.published}
    assert {key: published.war for key, published in found.items()} == WAR
    assert all(published.selection == "best_on_test" and published.uar is None for published in found.values())
    claims = {key[1] for key, published in found.items() if "a claim of the paper" in published.source}
    assert claims == {"fer2013", "raf_db"}


@pytest.mark.parametrize("method", ["vgg19", "resnet18"])
@pytest.mark.parametrize(("data", "epochs"), [("fer2013", 250), ("ckplus48", 60)])
def test_the_cnns_are_trained_as_published(method: str, data: str, epochs: int) -> None:
    run = load_run((f"methods/{method}", f"sets/{data}"))
    assert run.model == CnnConfig(net=method, dropout=0.5)  # type: ignore[arg-type]
    assert run.optim == SgdConfig(groups=run.optim.groups, momentum=0.9, weight_decay=5e-4)
    assert {name: group.lr for name, group in run.optim.groups.items()} == {"network": 0.01}
    assert (run.epochs, run.batch, run.data.size, run.data.frames) == (epochs, 128, 44, 1)
    assert (run.engine.clip_value, run.engine.clip_norm, run.engine.precision) == (0.1, None, "fp32")
    assert (run.data.augment.name, run.data.num_views) == ("cnn", 10)
    for epoch, rate in RATES[data]:
        factor = run.schedule.rates(7 * epoch, steps_per_epoch=7, total_steps=7 * epochs).factor
        assert 0.01 * factor == pytest.approx(rate)


@pytest.mark.parametrize(("net", "right"), [("vgg19", 2566), ("resnet18", 2555)])
def test_the_public_test_of_fer2013_is_a_row_of_its_own(net: str, right: int) -> None:
    """The published accuracies are whole counts of the 3,589 pictures of PublicTest (spec)."""
    run, private = load_run([f"fer2013/{net}_public"]), load_run([f"methods/{net}", "sets/fer2013"])
    assert run.published is not None and run.published.war == pytest.approx(100 * right / 3589, abs=5e-4)
    assert run.data == replace(private.data, protocol="public") and run.model == private.model
    assert (run.optim, run.schedule, run.epochs) == (private.optim, private.schedule, private.epochs)


def test_published_folds_are_by_position_and_ours_share_nobody() -> None:
    protocols = {
        ("methods/vgg19", "sets/ckplus48"): "positional",
        ("methods/resnet18", "sets/ckplus48"): "positional",
        ("ckplus48/vgg19_subjects",): "subjects",
        ("ckplus48/resnet18_subjects",): "subjects",
        ("methods/clivp_fer", "sets/kmu_fed"): "subjects",
        ("methods/clivp_fer_mode0", "sets/kmu_fed"): "subjects",
        ("methods/clivp_fer_true_label", "sets/kmu_fed"): "positional",
        ("methods/vgg19", "sets/fer2013"): "private",
        ("fer2013/vgg19_public",): "public",
        ("fer2013/resnet18_public",): "public",
    }
    found = {row.configs: load_run(row.configs).data.protocol for row in ROWS if row.configs in protocols}
    assert found == protocols


@pytest.mark.parametrize("row", rows(ClivpFerConfig), ids=lambda row: " ".join(row.configs))
def test_clivp_fer_is_trained_as_published(row: Row) -> None:
    run, (method, _) = load_run(row.configs), parts(row)
    assert isinstance(run.model, ClivpFerConfig) and isinstance(run.optim, AdamConfig)
    assert (run.epochs, run.batch, run.eval_batch, run.data.size) == (40, 64, 16, 224)
    assert (run.optim.weight_decay, run.optim.betas, run.optim.eps) == (1e-4, (0.9, 0.999), 1e-8)
    assert {name: group.lr for name, group in run.optim.groups.items()} == {"head": 3e-3}
    assert (run.model.towers.arch, run.model.towers.pretrained) == ("ViT-B-32-quickgelu", "openai")
    augment = run.data.augment
    assert augment.name == "clivp_fer" and (augment.flip, augment.rotation) == (0.5, 30.0)
    leaks = method == "clivp_fer_true_label"
    assert run.model.leaks_label is leaks is row.leaks_label is ("LEAKS LABEL" in row.line())
    assert row.published is None or row.published.leaks_label is leaks
    assert run.select == ("best_on_test" if leaks else "last")
    assert run.early_stop == (EarlyStopConfig(patience=10, min_delta=0.001) if leaks else None)


@pytest.mark.parametrize(("method", "count"), [("vgg19", "20,038,983"), ("resnet18", "11,172,423")])
def test_a_dry_run_shows_classes_groups_rates_and_steps(tmp_path: Path, method: str, count: str) -> None:
    rng = np.random.default_rng(1)

    def still(number: int) -> Clip:
        face = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        return Clip(key=f"{number:04d}", label=number % 7, frames=[simplejpeg.encode_jpeg(face, quality=95)])

    stills = [still(number) for number in range(300)]
    shards = write_shards(tmp_path / "shards", {"train": [stills[:280]], "test": [stills[280:]]}, classes=BASIC7)
    changes = (f"run={tmp_path}/run", f"data.shards={shards}", "data.protocol=published", "data.workers=0")
    text = describe(load_run((f"methods/{method}", "sets/fer2013"), changes), World())
    assert f"network: {count} parameters, lr 0.01" in text and "frozen: 0 parameters" in text
    assert "train: 280 clips (happiness 40," in text and "steps: 2 an epoch, 500 in all" in text
