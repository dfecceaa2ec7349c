"""Generated faces drawn by several processes."""

from pathlib import Path

import pytest

from dfer.errors import StorageError
from shards.synthetic import synth

pytestmark = pytest.mark.integration


def test_the_number_of_processes_does_not_change_a_byte(tmp_path: Path) -> None:
    for jobs in (1, 2):
        synth("ferv39k", tmp_path / str(jobs), clips=20, seed=9, jobs=jobs, size=64, progress=False)
    one, two = (
        {str(p.relative_to(tmp_path / d)): p.read_bytes() for p in (tmp_path / d).rglob("*") if p.is_file()}
        for d in ("1", "2")
    )
    assert one == two
    assert len(one) > 20 * 8


def test_a_failing_disk_is_explained_from_a_process(tmp_path: Path) -> None:
    """The folder of the clips is a file, so no worker can write; the error crosses the process border."""
    out = tmp_path / "d"
    synth("ferv39k", out, clips=14, seed=9, size=32, progress=False)
    for clip in (out / "2_ClipsforFaceCrop").rglob("*.jpg"):
        clip.unlink()
    (out / "2_ClipsforFaceCrop").rename(tmp_path / "aside")
    (out / "2_ClipsforFaceCrop").write_text("")
    with pytest.raises(StorageError) as caught:
        synth("ferv39k", out, clips=14, seed=9, size=32, jobs=2, progress=False)
    assert "2_ClipsforFaceCrop" in str(caught.value) and "Check the folder" in str(caught.value)
