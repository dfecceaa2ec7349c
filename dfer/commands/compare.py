"""`dfer compare`: one table over runs, methods and sets."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.cli import add_command
from dfer.errors import UsageError, message

if TYPE_CHECKING:
    from dfer.jobs.rows import Row
    from dfer.report.compare import Pending
    from dfer.storage import Folder

COMPARE = """dfer compare runs/dfew/dfer_clip runs/dfew/linear_probe
dfer compare runs/dfew/dfer_clip s3://bucket/coop --markdown table.md --html comparison
dfer compare --set dfew --html comparison
dfer compare runs/dfew/dfer_clip --rows methods/linear_probe methods/dfer_clip_depth2 sets/dfew sets/mafw"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    text = "one table over runs: scores with intervals, recalls, tests between runs, published numbers"
    sub = add_command(commands, "compare", text, COMPARE, _compare)
    sub.add_argument("runs", nargs="*", metavar="RUN", help="run or cross-validation folder (also s3://...)")
    sub.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="rows by methods/NAME and sets/NAME")
    sub.add_argument("--set", metavar="NAME", help="all rows of configs/README.md of a set, such as dfew")
    sub.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    sub.add_argument("--html", metavar="FOLDER", help="write a page with pictures here (also s3://...)")


def _compare(args: argparse.Namespace) -> None:
    from dfer.jobs.config import RunConfig
    from dfer.report.compare import compare
    from dfer.report.compare_tables import markdown, text
    from dfer.storage import Folder
    from dfer.text_files import write_text

    rows = [*named_rows(args.rows), *(rows_of(args.set) if args.set else [])]
    runs = [Folder(run, what="the run folder") for run in args.runs]
    there, pending = with_results(list({row.configs: row for row in rows}.values()), args.runs)
    found = compare([*runs, *there], RunConfig, pending=pending)
    print(text(found))
    if args.markdown:
        args.markdown.write_text(markdown(found), encoding="utf-8", errors="backslashreplace")
    if args.html:
        from dfer.report.compare_page import compare_page  # not at the top: matplotlib takes 0.5 s

        out = Folder(args.html, what="--html")
        write_text(out, "index.html", compare_page(found))
        print(f"\nPage: {out.where('index.html')}")


def named_rows(names: Sequence[str]) -> "list[Row]":
    """Return the rows of all methods and sets that are named, with the published numbers where there are some.

    Raises:
        UsageError: a name is no method or set that comes with the package, or one of the two is missing.
    """
    from dfer.config_files import names as known
    from dfer.errors import did_you_mean
    from dfer.jobs.rows import Row, published_of

    methods, sets = ([n for n in names if n.startswith(kind)] for kind in ("methods/", "sets/"))
    wrong = next((name for name in names if name not in known() or name not in (*methods, *sets)), None)
    if wrong is not None:
        expected = "the name of a method and of a set, such as methods/dfer_clip sets/dfew"
        raise UsageError(
            message("--rows", expected=expected, got=wrong, do=did_you_mean(wrong, known()) or "Correct it.")
        )
    if names and not (methods and sets):
        lacks = "no set" if methods else "no method"
        raise UsageError(
            message("--rows", expected="at least one of each", got=lacks, do="Add methods/... or sets/...")
        )
    pairs = [(method, each) for each in sets for method in methods]
    return [Row(configs=pair, protocol="", published=published_of(pair)) for pair in pairs]


def data_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of the shards of a set, which several sets may share, and its classes."""
    from dfer.config_files import read
    from dfer.emotions import label_set

    data = read([f"sets/{name}"])["data"]
    classes = data["classes"]
    return Path(data["shards"]).name, label_set(classes).names if isinstance(classes, str) else tuple(classes)


def rows_of(name: str) -> "list[Row]":
    """Return all rows of a set. Raises UsageError that names the sets with rows."""
    from dfer.jobs.rows import ROWS

    found = [row for row in ROWS if row.dataset == name.removeprefix("sets/")]
    if not found or not name:
        sets = sorted({row.dataset for row in ROWS if row.dataset})
        raise UsageError(message("--set", expected=f"one of {', '.join(sets)}", got=name, do="Correct it."))
    return found


def with_results(rows: "Sequence[Row]", given: Sequence[str]) -> "tuple[list[Folder], list[Pending]]":
    """Divide rows into those with results in their default folder, runs/SET/METHOD, and those that are pending. Rows
    whose default folder is among the given runs are left out."""
    from dfer.jobs.parts import parts_in
    from dfer.report.compare import Pending
    from dfer.run.layout import finished
    from dfer.storage import Folder

    there, pending = [], []
    for row in rows:
        home = Folder(f"runs/{row.dataset}/{row.method}")
        if any(Path(run).resolve() == home.local.resolve() for run in given if home.local and "://" not in run):
            continue
        if finished(home) or any(finished(Folder(part.run)) for part in parts_in(home)):
            there.append(home)
        else:
            shards, classes = data_of(row.dataset)
            pending.append(
                Pending(label=row.method, dataset=shards, classes=classes, published=row.published, warning=row.warning)
            )
    return there, pending
