"""The comparison of a remote store with a local disk measures what it says, and refuses what it cannot compare."""

from pathlib import Path

import pytest

from dfer.bench.streaming import bench_streaming
from dfer.errors import UsageError
from tests.unit.data.httpkit import site
from tests.unit.data.shardkit import Clip, jpeg, write_shards


def shards(folder: Path, grey: int) -> Path:
    clips = [Clip(key=f"k{n}", frames=[jpeg(grey + n)] * 3) for n in range(20)]
    return write_shards(folder, {"train": [clips[:10], clips[10:]]})


@pytest.mark.slow("reads a set three times, from a server and from the disk")
def test_a_store_beside_a_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "s", 1)
    with site(folder) as server:
        result = bench_streaming(server.url, against=str(folder), frames=2, size=32, rounds=1)
        read = server.bytes_of(".tar")
    assert result["remote_share"] == pytest.approx(result["remote"] / result["local"])
    assert min(result.values()) > 0 and "boto3_mb_s" not in result
    size = sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert read == 3 * size, "one epoch into an empty cache, and two ways of reading all"
    assert f"from the store     {result['remote']:,.0f} frames/s (" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one, two = shards(tmp_path / "one", 1), shards(tmp_path / "two", 50)
    with site(one) as server:
        with pytest.raises(UsageError, match=r"expected a URL against a local folder, got .* Give the URL first"):
            bench_streaming(str(one), against=server.url)
        with pytest.raises(UsageError, match=r"bench loader: expected the same shards in both, got others. Copy the"):
            bench_streaming(server.url, against=str(two))
