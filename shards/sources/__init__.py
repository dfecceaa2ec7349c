"""Readers of raw data sets. To add one, write a file with `read(raw) -> RawSet` and add its line here."""

from collections.abc import Callable
from pathlib import Path

from shards.sources import (
    afew,
    affectnet,
    ckplus,
    ckplus48,
    described,
    dfew,
    fer2013,
    ferplus,
    ferv39k,
    kmu_fed,
    mafw,
    raf_db,
)
from shards.sources.clips import RawSet

SOURCES: dict[str, Callable[[Path], RawSet]] = {
    "affectnet": affectnet.read,
    "afew": afew.read,
    "ckplus": ckplus.read,
    "ckplus48": ckplus48.read,
    "described": described.read,
    "dfew": dfew.read,
    "fer2013": fer2013.read,
    "ferplus": ferplus.read,
    "ferv39k": ferv39k.read,
    "kmu_fed": kmu_fed.read,
    "mafw": mafw.read,
    "raf_db": raf_db.read,
}
