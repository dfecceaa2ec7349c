"""The table of fitted heads, as text, Markdown and JSON, with a plot of what each reached."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dfer.report.tables import md_text
from dfer.storage import Folder
from dfer.text_files import write_text

COLUMNS = ("part", "epochs", "batch", "temperature", "lr", "steps", "loss", "accuracy", "train accuracy", "seconds")


def write_fits(
    home: Folder, rows: Mapping[str, Mapping[str, Any]], *, of: int, instructions: Sequence[str] = ()
) -> str:
    """Write `report/fits.md` and `report/fits.json`; returns the table.

    rows: results by part. of: number of parts. instructions: those of a sweep; parts have their numbers from 1.
    """
    best = sorted(rows, key=lambda name: -float(rows[name]["accuracy"]))
    cells = [_cells(name, rows[name]) for name in best]
    widths = [max(len(line[at]) for line in [COLUMNS, *cells]) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [COLUMNS, *cells]]
    measured = {str(rows[name]["of"]) for name in rows}
    notes = [
        f"accuracy: picture -> teacher, of {'; '.join(sorted(measured))}",
        "train accuracy: the same among the pairs of a batch, which is easier in a smaller one, mean over the steps of "
        "the last epoch",
    ]
    if len(rows) < of:
        notes.append(f"{len(rows)} of {of} parts; the same command fits the others")
    told = [f"instruction_{number}: {said}" for number, said in enumerate(instructions, start=1)]
    text = "\n".join([*lines, *notes, *told])
    table = "\n".join(f"| {' | '.join(line)} |" for line in [COLUMNS, ("---",) * len(COLUMNS), *cells])
    report = home / "report"
    listed = "".join(f"- {md_text(line)}\n" for line in told)
    page = f"# Fitted heads\n\n{table}\n\n{'. '.join(notes)}.\n" + (f"\n{listed}" if listed else "")
    write_text(report, "fits.md", page)
    report.write("fits.json", (json.dumps({name: rows[name] for name in best}, indent=1) + "\n").encode())
    return text


def _cells(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    settings = found["settings"]
    rates = [group["lr"] for group in settings["optim"]["groups"].values()]
    values = (found["epochs"], settings["batch"], settings["head"]["temperature"], rates[0], found["steps"])
    trained = found.get("train_accuracy")
    score = (f"{found['loss']:.4f}", _percent(found["accuracy"]), _percent(trained), f"{found['seconds']:.1f}")
    return (name, *(f"{value:g}" for value in values), *score)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
