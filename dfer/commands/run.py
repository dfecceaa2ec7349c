"""`dfer train | crossval | evaluate`: commands that take a configuration."""

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from dfer.cli import add_command, add_configs, names
from dfer.errors import UsageError, message
from dfer.interruption import Stop
from dfer.surroundings import refuse_copies

if TYPE_CHECKING:
    from dfer.evaluation.results import FoldResult

TRAIN = """dfer train configs/demo.yaml run=runs/try fold=2
dfer train methods/dfer_clip sets/dfew --dry-run
torchrun --nproc_per_node 4 -m dfer train methods/dfer_clip sets/dfew engine.zero=2 engine.precision=bf16"""
CROSSVAL = """dfer crossval methods/dfer_clip sets/dfew data.shards=s3://bucket/dfew
dfer crossval configs/demo.yaml --only fold_1,fold_2
dfer crossval configs/demo.yaml seeds=[1,2,3] --only seed_2/fold_3"""
EVALUATE = """dfer evaluate runs/dfew/dfer_clip/fold_1
dfer evaluate runs/dfew/dfer_clip/fold_1 --shuffle-frames
dfer evaluate runs/dfew/dfer_clip/fold_1 data.shards=data/ferv39k fold=1
dfer evaluate models/dfer_clip_dfew sets/dfew run=runs/released fold=1
dfer evaluate methods/dfer_clip sets/dfew run=runs/untrained fold=1"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three commands."""
    for name, run, text, examples in (
        ("train", _train, "train one fold and evaluate it; continues an existing run folder", TRAIN),
        (
            "crossval",
            _crossval,
            "train all folds, for every seed, one after another, then write the report; continues",
            CROSSVAL,
        ),
    ):
        sub = add_command(commands, name, text, examples, run)
        add_configs(sub)
        sub.add_argument("--dry-run", action="store_true", help="print what would be trained on what, and stop")
        if name == "crossval":
            sub.add_argument("--only", type=names, default=[], metavar="fold_1,fold_2", help="only these parts")
    text = "evaluate a run, finished or not, a saved model, or a configuration's weights"
    sub = add_command(commands, "evaluate", text, EVALUATE, _evaluate)
    add_configs(sub, "; or the folder of a run; or that of a saved model, before sets/Y (also s3://...)")
    sub.add_argument("--out", metavar="FOLDER", help="write a run's results here (also s3://...), none into the run")
    sub.add_argument(
        "--shuffle-frames", action="store_true", help="a second result, with each clip's frames in a random order"
    )


def _train(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer import config
    from dfer.jobs.config import load_run

    chosen = load_run(args.configs, args.overrides)
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.describe import describe
    from dfer.jobs.train import train

    world = from_environment()
    if args.dry_run:
        print(config.to_yaml(chosen) + "\n" + describe(chosen, world))
        return
    stop = Stop()
    with process_group(world), stop.on_signals():  # during the rendezvous, a signal ends it
        result = train(chosen, world, stop)
    if world.is_first:
        print(_scores(chosen.run, result))


def _crossval(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer import config
    from dfer.jobs import crossval as job
    from dfer.jobs.config import load_run
    from dfer.jobs.parts import chosen

    whole = load_run(args.configs, args.overrides)
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.describe import describe

    world = from_environment()
    if args.dry_run:
        print(config.to_yaml(whole))
        for part in chosen(job.parts(whole), args.only):
            print(f"== {part.name}\n{describe(job.config_of_part(whole, part), world)}")
        return
    stop = Stop()
    with process_group(world), stop.on_signals():  # during the rendezvous, a signal ends it
        table = job.crossval(whole, world, only=args.only, stop=stop)
    if world.is_first:
        print(table)


def _evaluate(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer.config_files import is_run_folder, locate
    from dfer.jobs.answering import config_of
    from dfer.jobs.config import load_run
    from dfer.jobs.saved import run_of
    from dfer.models.saved import open_saved
    from dfer.storage import Folder

    first = args.configs[0]
    saved = open_saved(first) if is_run_folder([first]) else None
    trained = saved is None and is_run_folder(args.configs)
    if saved is not None:
        chosen = run_of(saved, args.configs[1:], args.overrides)
    elif trained:
        chosen = replace(config_of(first, args.overrides), run=first)
    elif len(args.configs) == 1 and locate(first) is None:
        do = "Correct the path, or train first: dfer train CONFIG"
        raise UsageError(message(first, expected="a run folder or a configuration", got="neither", do=do))
    else:
        chosen = load_run(args.configs, args.overrides)
    if args.out and not trained:
        do, got = "Give the folder as run=FOLDER.", "a configuration" if saved is None else "a saved model"
        raise UsageError(message("--out", expected="a run folder to evaluate", got=got, do=do))
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.evaluate import evaluate_run
    from dfer.models.files import trains_nothing
    from dfer.run.layout import is_evaluated

    trained = trained and not trains_nothing(chosen.model) and not is_evaluated(Folder(chosen.run, what="run"))
    world, out = from_environment(), Folder(args.out, what="--out") if args.out else None
    with process_group(world):
        result = evaluate_run(chosen, world, trained=trained, out=out, shuffle_frames=args.shuffle_frames)
    if world.is_first:
        print(_scores(chosen.run, result))


def _scores(run_folder: str, result: "FoldResult") -> str:
    on = f" on {result.data}" if result.generated or result.trained else ""
    on += ", frames shuffled" if result.protocol.shuffled else ""
    line = f"{run_folder}: {result.line}{on} ({result.selection})"
    if result.complete:
        return line
    from dfer.evaluation.results import file_of

    where = f"epoch {result.epoch} of {result.epochs}, in {file_of(result)}"
    return f"{line}; the training is not complete: {where}"
