"""docs/shard_format.md names every field of the format, and none that is not there."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

from dfer.data.geometry import MAX_PIXELS
from dfer.store import format as shard_format
from dfer.store.index import ClipEntry, index_json
from shards.build import build
from shards.shard import BuildOptions
from shards.sources import SOURCES
from tests.unit.shards import rawkit

PAGE = (Path(__file__).parents[3] / "docs/shard_format.md").read_text()
CLASSES = [c for _, c in inspect.getmembers(shard_format, dataclasses.is_dataclass)]


def documented(name: str) -> list[str]:
    """The fields in the table that follows "`Name`:"."""
    table = PAGE.split(f"\n`{name}`:\n\n", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind: type) -> None:
    assert documented(kind.__name__) == [field.name for field in dataclasses.fields(kind)]


def test_every_table_has_its_dataclass() -> None:
    assert set(re.findall(r"^`(\w+)`:$", PAGE, re.MULTILINE)) == {kind.__name__ for kind in CLASSES}
    assert len(CLASSES) == 9


def test_the_columns_on_the_page_are_those_of_an_index() -> None:
    facts = {"subject": "a", "source": "b", "text": "c", "votes": (1,), "faces": ((0.0, 0.0, 1.0, 1.0),)}
    clip = ClipEntry(key="a", label=0, offset=512, sizes=(1,), **facts)  # type: ignore[arg-type]
    table = PAGE.split("\nColumns:\n\n", 1)[1].split("\n\n", 1)[0]
    written = set(json.loads(index_json("train/00000.tar", (), [clip], num_classes=1)))
    assert set(re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE)) == written
    assert (
        f"| `version` | {shard_format.FORMAT_VERSION}" in table
        and f"| `version` | {shard_format.FORMAT_VERSION}. " in PAGE
    )


def test_the_tree_on_the_page_is_what_a_build_writes(tmp_path: Path) -> None:
    raw = rawkit.dfew(tmp_path / "DFEW")
    build(SOURCES["dfew"](raw), str(tmp_path / "out"), BuildOptions(), progress=False)
    tree = PAGE.split("```")[1]
    named = set(re.findall(r"^  (\S+)", tree, re.MULTILINE))
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name for name in written if not re.match(r"fold_[2-5]/", name)} == named - {
        "excluded.txt",
        "protocols/NAME.1.test.txt",
    }


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    assert f"{shard_format.MAX_FRAMES:,} frames a clip" in " ".join(PAGE.split())
    words = " ".join(PAGE.split())
    assert f"{shard_format.MAX_CLASSES:,} classes" in words and f"{shard_format.MAX_TEXT:,} letters of a" in words
    assert f"{shard_format.MAX_FRAME_BYTES >> 20} MiB a frame" in words
    assert f"list of keys of more than {shard_format.MAX_JSON_BYTES >> 20} MiB" in words
    assert f"a frame of more than {MAX_PIXELS:,} pixels" in words
    assert shard_format.KEY.fullmatch("/".join(["a" * 40] * 4))
    assert not shard_format.KEY.fullmatch("/".join(["a"] * 5))
