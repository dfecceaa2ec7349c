"""`dfer predict`: expressions of clips given as folders of face frames."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from dfer.cli import add_command
from dfer.commands.run import config_of
from dfer.errors import DataError, message

EXAMPLES = """dfer predict demo/run/fold_1 demo/raw/Clip/clip_224x224/00001
dfer predict runs/dfew/dfer_clip/fold_1 clips/* --csv answers.csv
dfer predict models/dfer_clip_dfew clips/00001"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    text = "expressions of clips given as folders of face frames, one by one"
    sub = add_command(commands, "predict", text, EXAMPLES, _predict)
    sub.add_argument("run", help="run folder of one fold, or a saved model (also s3://...)")
    sub.add_argument("clips", nargs="+", type=Path, metavar="FOLDER")
    sub.add_argument("--csv", type=Path, help="write all class probabilities here, a row a clip")


def _predict(args: argparse.Namespace) -> None:
    from dfer.jobs.saved import run_of
    from dfer.models.saved import open_saved

    saved = open_saved(args.run)
    here = [f"data.shards={args.run}", f"run={args.run}"]  # neither is read
    chosen = run_of(saved, overrides=here) if saved else replace(config_of(args.run), run=args.run)
    from dfer.distributed import from_environment
    from dfer.jobs.predict import Table, likeliest, predict

    bad: list[tuple[Path, DataError]] = []
    with closing(Table(args.csv)) if args.csv else nullcontext() as table:
        for clip, answer in predict(chosen, args.clips, from_environment(), saved=saved):
            if isinstance(answer, DataError):
                bad.append((clip, answer))
                if len(args.clips) > 1:
                    print(f"warning: {answer}", file=sys.stderr, flush=True)
                continue
            if table:
                table.add(clip, answer)
            first, second = likeliest(answer), sorted(answer, key=answer.__getitem__, reverse=True)[1]
            print(f"{clip}  {first} {answer[first]:.2f}  (then {second} {answer[second]:.2f})", flush=True)
    _check_none_bad(args.clips, bad)


def _check_none_bad(clips: Sequence[Path], bad: Sequence[tuple[Path, DataError]]) -> None:
    """Raise DataError that names the clips without an answer; for a single clip, raise that clip's own error."""
    if len(clips) == 1 and bad:
        raise bad[0][1]
    if bad:
        names = ", ".join(str(clip) for clip, _ in bad[:20]) + (" and more" if len(bad) > 20 else "")
        expected, got = f"to read all {len(clips)} clips", f"{len(bad)} that cannot be read: {names}"
        do = "Mend or leave out those; the others were answered."
        raise DataError(message("predict", expected=expected, got=got, do=do))
