"""Opening generated rows: what is measured is what training opens."""

import pytest

from dfer.bench.index import bench_index
from dfer.errors import UsageError


@pytest.mark.parametrize("facts", [False, True])
def test_every_round_opens_all_rows(capsys: pytest.CaptureFixture[str], facts: bool) -> None:
    found = bench_index(2_050, per_shard=1_000, facts=facts, rounds=3)
    assert len(found) == 3 and all(wall > 0 and cpu >= 0 for wall, cpu in found)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and told[-1].startswith("2,050 stills in shards of 1,000 (")
    assert ("face boxes" in told[-1]) == facts


def test_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="dfer bench index: expected numbers above 0"):
        bench_index(0)
