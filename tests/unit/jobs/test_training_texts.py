"""Which text a training clip has in contrastive training: its own, that of its class, or either."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer

from dfer.config import ConfigProblem, changed
from dfer.data.config import DataConfig
from dfer.data.mix_config import MixConfig
from dfer.distributed import World
from dfer.errors import DataError
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import clips_of_rows, open_fold, train_loader, training_texts
from dfer.jobs.targets import words
from dfer.models.config import ContrastiveConfig, LinearProbeConfig, ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.training.config import SgdConfig
from tests.unit.data.shardkit import Clip, write_shards

CAPTIONS = ["a broad smile.", None, "wide eyes.", None]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips to train on, two of them with a text; one to test."""
    train = [Clip(key=f"{number}", label=number, text=text) for number, text in enumerate(CAPTIONS)]
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, {"train": [train], "test": [[Clip(key="9", label=0)]]})


def config(shards: Path, **changes: Any) -> RunConfig:
    towers = TowersConfig(arch="tiny-conv-64")
    found = RunConfig(
        run="run",
        epochs=1,
        batch=4,
        data=DataConfig(shards=str(shards), workers=0, frames=1, size=64),
        model=ContrastiveConfig(towers=towers, text="ensemble_5"),
        optim=SgdConfig(groups={}),
    )
    return changed(found, changes)


def texts(shards: Path, **changes: Any) -> list[str] | None:
    chosen = config(shards, **changes)
    fold = open_fold(chosen)
    return training_texts(chosen, fold.train, fold.emotions)


def test_a_clip_without_a_caption_is_refused_or_has_the_first_text_of_its_class(shards: Path) -> None:
    said = (
        r"a text for each of 4 training clips, got 2 without \(1, 3\)\. Set model.text_from=caption_or_class or class"
    )
    with pytest.raises(DataError, match=said):
        texts(shards)
    expected = ["a broad smile.", "an expression of sadness.", "wide eyes.", "an expression of anger."]
    assert texts(shards, **{"model.text_from": "caption_or_class"}) == expected
    of_class = texts(shards, **{"model.text_from": "class"})
    assert of_class == [f"an expression of {name}." for name in ("happiness", "sadness", "neutral", "anger")]


def test_only_contrastive_training_has_texts(shards: Path) -> None:
    assert texts(shards, model=LinearProbeConfig()) is None


def test_batches_hold_the_tokens_of_clip_s_tokenizer(shards: Path) -> None:
    chosen = config(shards, **{"model.text_from": "caption_or_class"})
    (batch,) = train_loader(chosen, open_fold(chosen), World()).epoch(0)
    expected = SimpleTokenizer()(texts(shards, **{"model.text_from": "caption_or_class"}))[batch.index]
    assert batch.text is not None and torch.equal(batch.text, expected[:, : batch.text.shape[1]])  # type: ignore[union-attr]
    assert not expected[:, batch.text.shape[1] :].any()  # type: ignore[union-attr]


def test_a_balanced_epoch_has_the_text_of_every_row_s_clip(tmp_path: Path) -> None:
    """Five clips of one class and one of another: the epoch takes this one three times."""
    train = [Clip(key=f"{n}", label=int(n == 5), text=f"text number {n}.") for n in range(6)]
    write_shards(tmp_path, {"train": [train], "test": [[Clip(key="9", label=0)]]})
    chosen = config(tmp_path, **{"data.balance": 1.0, "batch": 6})
    clips = open_fold(chosen)
    rows = clips_of_rows(chosen, clips)
    (batch,) = train_loader(chosen, clips, World()).epoch(0)
    taken = rows[batch.index.numpy()].tolist()
    assert taken.count(5) == 3 and int(batch.index.max()) > 5
    expected = SimpleTokenizer()([f"text number {clip}." for clip in taken])
    assert batch.text is not None and torch.equal(batch.text, expected[:, : batch.text.shape[1]])  # type: ignore[union-attr]


@pytest.mark.parametrize("method", [ContrastiveConfig, ZeroShotConfig])
@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"data.mix": MixConfig(mixup=0.5, fmix=0.25)}, "data.mix.mixup=0.5, data.mix.fmix=0.25"),
        ({"data.mix": MixConfig(label_smoothing=0.3)}, "data.mix.label_smoothing=0.3"),
        ({"data.targets": "votes"}, "data.targets=votes"),
    ],
)
def test_what_changes_class_targets_is_refused_where_there_are_none(
    shards: Path, method: type, change: dict[str, Any], given: str
) -> None:
    model = method(towers=TowersConfig(arch="tiny-conv-64"))
    with pytest.raises(ConfigProblem) as caught:
        config(shards, model=model, **change)
    assert str(caught.value) == (
        f"data: expected nothing that changes class targets, got {given} with model.name={model.name}, which has no "
        "class targets. Leave them out, or choose another method"
    )


def test_a_result_of_weights_that_train_nothing_tells_of_no_training(shards: Path) -> None:
    untrained = ZeroShotConfig(towers=TowersConfig(arch="tiny-conv-64"))
    assert words(config(shards, **{"data.balance": 0.5})) == "classes balanced with power 0.5"
    assert words(config(shards, model=untrained, **{"data.balance": 0.5})) == ""
