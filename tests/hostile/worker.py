"""Feeds one kind of hostile files to the project, in its own process: `python -m tests.hostile.worker KIND FOLDER`.

The files that a kind mutates at random are the same at all times. The long form reads all of them, the short one all
named files and the eighth of the mutated ones whose turn it is by the day.

Writes a line of JSON for every file to FOLDER/outcomes.jsonl, and before it the file's name, so that a process that
ends on it says on which.
"""

import importlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypothesis.configuration import set_hypothesis_home_dir

from tests.hostile.guard import LIMIT_S, Guard

OUTCOMES, MARK = "outcomes.jsonl", "MARK"
LONG, DAY = "DFER_TEST_LONG", "DFER_TEST_DAY"
MUTATED: Final = None
"""Yielded by a kind's `cases` where its named files end and those that are mutated at random begin."""
SHARE = 8
"""One in so many of the mutated ones is read on a day; so many days read all."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile file or folder. write: puts it into an empty folder; reads: what of the project takes it in, by name.

    refuse: the readers that must not accept it.
    """

    name: str
    write: Callable[[Path], object]
    reads: dict[str, Callable[[Path], object]]
    refuse: tuple[str, ...] = ()


def main(kind: str, folder: Path) -> None:
    """Go through all cases of a kind."""
    home = folder / "home"
    home.mkdir()
    os.environ["TMPDIR"], os.environ["DFER_CACHE"] = str(home), str(home / "case" / "cache")
    set_hypothesis_home_dir(home)
    module: Any = importlib.import_module(f"tests.hostile.{kind}")
    seeds = module.seeds(folder / "seeds")
    guard: Guard | None = None
    with (folder / OUTCOMES).open("w") as out:
        for case in chosen(module.cases(seeds, folder / MARK), module.COUNT):
            at = home / "case"
            at.mkdir()
            case.write(at)
            if guard is None:  # the first one is a whole file: it loads what is loaded late, and must pass
                for read in case.reads.values():
                    read(at)
                guard = Guard(home, mark=folder / MARK, limit_s=getattr(module, "LIMIT_S", LIMIT_S))
            out.write(json.dumps({"begun": case.name}) + "\n")
            out.flush()
            for reader, read in case.reads.items():
                found = guard.run(f"{case.name} -> {reader}", partial(read, at))
                fault = found.fault or ("accepted" if reader in case.refuse and not found.refused else "")
                out.write(json.dumps({**asdict(found), "fault": fault, "case": case.name}) + "\n")
            shutil.rmtree(at)


def today() -> int:
    """The number of the day, or the one that repeats another day's choice."""
    return int(os.environ.get(DAY, time.time() // 86_400))


def _day_of(number: int) -> int:
    """Which day a drawn case is read on: of each SHARE in a row, one a day, in an order drawn for them."""
    block, place = divmod(number, SHARE)
    return random.Random(f"dfer/{block}").sample(range(SHARE), SHARE)[place]


def chosen(cases: Iterable[Case | None], count: int) -> Iterator[Case]:
    """The first `count` cases, numbered: all named ones, and those of the mutated ones whose day it is."""
    all_of_them, mutated, day, number = bool(os.environ.get(LONG)), False, today(), -1
    for case in cases:
        if case is MUTATED:
            mutated = True
            continue
        number += 1
        if number == count:
            return
        if mutated and not all_of_them and _day_of(number) != day % SHARE:
            continue
        yield Case(name=f"{number:04d} {case.name}", write=case.write, reads=case.reads, refuse=case.refuse)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
