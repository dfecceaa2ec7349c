"""`dfer bench features`: two processes, of which the second has no file of weights and builds no tower."""

from pathlib import Path

from dfer.bench.features import bench_features
from tests.unit.data.shardkit import Clip, jpeg, write_shards


def test_the_second_epoch_reads_what_the_first_one_computed(tmp_path: Path) -> None:
    clips = [Clip(key=f"{number}", label=number % 7, frames=[jpeg(20 * number)]) for number in range(9)]
    write_shards(tmp_path, {"fold_1": [clips[:4]], "fold_2": [clips[4:]]})
    found = bench_features(str(tmp_path), arch="tiny-conv-64", batch=2)
    assert found["computing"]["loss"] == found["reading"]["loss"] > 0
    assert found["ratio"] > 0 and found["computing"]["features"] > 0
