"""CK+ from a generated tree of the real size to ten folds by position: 990 predictions, 33 stills twice, 24 never."""

from collections import Counter
from pathlib import Path

import pytest

from dfer.data.clips import keys_of
from dfer.data.splits import folds as folds_of
from dfer.store.shards import Store
from shards.build import build
from shards.shard import BuildOptions
from shards.sources import SOURCES
from shards.sources.generated import mark_generated
from shards.synthetic import synth
from tests.integration.commands import Capture, here, result

pytestmark = [pytest.mark.integration, pytest.mark.long]
SEQUENCES = 327
SMALL = (
    "data.size=64",
    "data.workers=0",
    "model.towers={arch: tiny-conv-64, pretrained: null}",
    "engine={name: ddp}",
    "epochs=1",
    "eval_batch=99",
)


def shards_of(dataset: str, folder: Path) -> Path:
    raw = folder / "raw"
    synth(dataset, raw, clips=SEQUENCES, seed=1, size=32, progress=False)
    found = mark_generated(SOURCES[dataset](raw), raw)
    build(found, str(folder / "shards"), BuildOptions(media=found.media), progress=False)
    return folder / "shards"


@pytest.mark.slow("draws 981 to 1,800 pictures and trains ten folds")
@pytest.mark.parametrize("dataset", ["ckplus", "ckplus48"])
def test_ten_folds_by_position_make_990_predictions(capsys: Capture, dataset: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shards = shards_of(dataset, tmp_path)
    words = (f"data.shards={shards}", f"data.features={tmp_path / 'features'}", f"run={run}")
    ended = here(
        capsys, "crossval", "methods/linear_probe", f"sets/{dataset}", "data.protocol=positional", *words, *SMALL
    )
    assert ended.returncode == 0, ended.stderr
    folds = [result(run / f"fold_{fold}") for fold in range(1, 11)]
    assert [found["clips"] for found in folds] == [99] * 10
    assert sum(sum(map(sum, found["confusion"])) for found in folds) == 990
    store = Store(str(shards))
    keys = Counter(key for fold in folds_of(store.manifest, "positional").values() for key in keys_of(store, fold.test))
    assert (keys.total(), sum(count == 2 for count in keys.values()), len(keys)) == (990, 33, 981 - 24)
    assert here(capsys, "report", run).returncode == 0
