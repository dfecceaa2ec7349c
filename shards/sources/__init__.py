"""Readers of raw data sets. To add one, write a file with `read(raw) -> RawSet` and add its line here."""

from collections.abc import Callable
from pathlib import Path

from shards.sources import dfew, ferv39k, mafw
from shards.sources.clips import RawSet

SOURCES: dict[str, Callable[[Path], RawSet]] = {"dfew": dfew.read, "ferv39k": ferv39k.read, "mafw": mafw.read}
