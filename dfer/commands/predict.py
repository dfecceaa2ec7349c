"""`dfer predict`: expressions of clips, given one by one as folders of face frames, or many at a time as a job."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.cli import add_command, names, positive
from dfer.errors import DataError, UsageError, message

if TYPE_CHECKING:
    from dfer.jobs.predict_job import PredictConfig

CONFIG = "jobs/predict"
"""The configuration that comes with the package."""
EXAMPLES = """dfer predict demo/run/fold_1 demo/raw/Clip/clip_224x224/00001
dfer predict runs/dfew/dfer_clip/fold_1 clips/* --csv answers.csv
dfer predict models/dfer_clip_dfew --clips clips --out answers
dfer predict models/dfer_clip_dfew --shards s3://bucket/shards --out s3://bucket/answers --workers 4"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    text = "expressions of clips: of some folders of face frames, or of shards and many folders, which continues"
    sub = add_command(commands, "predict", text, EXAMPLES, _predict)
    sub.add_argument("run", help="run folder of one fold, or a saved model (also s3://...)")
    sub.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="a clip: a folder of face frames")
    sub.add_argument("--csv", type=Path, help="with FOLDERs: write all class probabilities here, a row a clip")
    many = sub.add_argument_group("many clips", "written to --out; the same command continues")
    many.add_argument("--shards", metavar="URL", help="all clips of shards, labelled or not (also s3://...)")
    many.add_argument("--clips", metavar="PATH", help="all clips below a folder, or those that a text file lists")
    many.add_argument("--partitions", type=names, default=[], metavar="NAME,NAME", help="only these of the shards")
    many.add_argument("--out", metavar="FOLDER", help="for predictions.csv and summary.json (also s3://...)")
    many.add_argument("--workers", type=positive, default=1, metavar="N", help="processes on this machine")


def _predict(args: argparse.Namespace) -> None:
    job = {"--shards": args.shards, "--clips": args.clips}
    given = [name for name, value in {**job, "--out": args.out}.items() if value is not None]
    if given and args.folders:
        do = "Give one of the two."
        raise UsageError(message("predict", expected="folders or " + given[0], got="both", do=do))
    if not given and not args.folders:
        do = "Give folders of face frames, or --shards URL --out FOLDER."
        raise UsageError(message("predict", expected="clips", got="none", do=do))
    if not given:
        _answer(args)
        return
    missing = "--out FOLDER" if args.out is None else "" if any(job.values()) else "--shards URL or --clips PATH"
    if missing:
        raise UsageError(message("predict", expected=missing, got="none", do="Add it."))
    if args.csv:
        do = "Leave --csv out; --out holds predictions.csv."
        raise UsageError(message("--csv", expected="FOLDERs", got=given[0], do=do))
    _run_job(args)


def _answer(args: argparse.Namespace) -> None:
    from dfer.jobs.answering import answering

    found = answering(args.run)
    from dfer.distributed import from_environment
    from dfer.jobs.predict import Table, likeliest, predict

    bad: list[tuple[Path, DataError]] = []
    with closing(Table(args.csv)) if args.csv else nullcontext() as table:
        for clip, answer in predict(found.config, args.folders, from_environment(), saved=found.saved):
            if isinstance(answer, DataError):
                bad.append((clip, answer))
                if len(args.folders) > 1:
                    print(f"warning: {answer}", file=sys.stderr, flush=True)
                continue
            if table:
                table.add(clip, answer)
            first, second = likeliest(answer), sorted(answer, key=answer.__getitem__, reverse=True)[1]
            print(f"{clip}  {first} {answer[first]:.2f}  (then {second} {answer[second]:.2f})", flush=True)
    _check_none_bad(args.folders, bad)


def _check_none_bad(clips: Sequence[Path], bad: Sequence[tuple[Path, DataError]]) -> None:
    """Raise DataError that names the clips without an answer; for a single clip, raise that clip's own error."""
    if len(clips) == 1 and bad:
        raise bad[0][1]
    if bad:
        names = ", ".join(str(clip) for clip, _ in bad[:20]) + (" and more" if len(bad) > 20 else "")
        expected, got = f"to read all {len(clips)} clips", f"{len(bad)} that cannot be read: {names}"
        do = "Mend or leave out those; the others were answered."
        raise DataError(message("predict", expected=expected, got=got, do=do))


def _run_job(args: argparse.Namespace) -> None:
    """Run the job in this process; with several workers, in the place of this process by the launcher."""
    from dfer.jobs.predict_job import PredictConfig

    given = {"shards": args.shards, "clips": args.clips}
    config = PredictConfig(
        run=args.out,
        model=args.run,
        partitions=tuple(args.partitions),
        workers=args.workers,
        **{name: value for name, value in given.items() if value is not None},
    )
    if config.workers > 1:
        _launch(config)
    from dfer.interruption import Stop
    from dfer.jobs import predict_job

    parts = predict_job.parts(config)
    predict_job.check(config, parts, [1])
    with Stop().on_signals() as stop:
        for part in parts:
            if not predict_job.done(config, part):
                print(predict_job.run(config, part, None, stop), flush=True)
    print(predict_job.conclude(config))


def _launch(config: "PredictConfig") -> None:
    """Replace this process by `dfer-launch local`, which starts the parts beside each other."""
    given = {"run": config.run, "model": config.model, "shards": config.shards, "clips": config.clips}
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    words += [f"partitions=[{', '.join(config.partitions)}]"] if config.partitions else []
    workers = str(config.workers)
    command = ["-m", "launch", "local", CONFIG, "--parallel", workers, f"workers={workers}", *words]
    os.execv(sys.executable, [sys.executable, *command])
