"""Feeds one kind of hostile files to the project, in its own process: `python -m tests.hostile.worker KIND FOLDER`.

Writes a line of JSON for every file to FOLDER/outcomes.jsonl, and before it the file's name, so that a process that
ends on it says on which.
"""

import importlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis.configuration import set_hypothesis_home_dir

from tests.hostile.guard import LIMIT_S, Guard

OUTCOMES, MARK = "outcomes.jsonl", "MARK"


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
        for case in _numbered(itertools.islice(module.cases(seeds, folder / MARK), module.COUNT)):
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


def _numbered(cases: Iterable[Case]) -> Iterator[Case]:
    for number, case in enumerate(cases):
        yield Case(name=f"{number:04d} {case.name}", write=case.write, reads=case.reads, refuse=case.refuse)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
