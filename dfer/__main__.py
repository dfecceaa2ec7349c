"""The command line: `dfer train | crossval | evaluate | predict | report | bench`."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dfer.errors import DataError, DferError, StorageError, UsageError, message
from dfer.exit import Leaving
from dfer.interruption import Stop
from dfer.surroundings import accept_any_encoding, refuse_copies

if TYPE_CHECKING:
    from dfer.evaluation.results import FoldResult
    from dfer.jobs.config import RunConfig
    from dfer.storage import Folder

EXAMPLES = {
    "train": "dfer train configs/demo.yaml run=runs/try fold=2\n  dfer train configs/dfew/dfer_clip.yaml --dry-run\n"
    "  torchrun --nproc_per_node 4 -m dfer train configs/dfew/dfer_clip.yaml engine.zero=2 engine.precision=bf16",
    "crossval": "dfer crossval configs/dfew/dfer_clip.yaml data.shards=s3://bucket/dfew\n"
    "  dfer crossval configs/demo.yaml --folds 1,2",
    "evaluate": "dfer evaluate runs/dfew/dfer_clip/fold_1\n"
    "  dfer evaluate configs/dfew/dfer_clip.yaml run=runs/released fold=1 model.released=DFEW-set1-model.pth",
    "predict": "dfer predict demo/run/fold_1 demo/raw/Clip/clip_224x224/00001\n"
    "  dfer predict runs/dfew/dfer_clip/fold_1 clips/* --csv answers.csv",
    "report": "dfer report runs/dfew/dfer_clip\n  dfer report /data/alice/dfew --out alice_dfew",
    "bench loader": "dfer bench loader demo/shards\n  dfer bench loader data/dfew --seconds 20\n"
    "  dfer bench loader s3://bucket/dfew --against data/dfew",
    "bench resume": "dfer bench resume configs/demo.yaml data.shards=demo/shards",
    "bench save": "dfer bench save\n  dfer bench save --out s3://bucket/bench",
    "bench scale": "dfer bench scale",
    "bench step": "dfer bench step --precision bf16\n  dfer bench step --arch ViT-B-16-quickgelu --clips 1",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a DferError becomes one line on stderr and its exit code."""
    accept_any_encoding()
    with redirect_stderr(sys.stderr if _speaks() else StringIO()):
        args = parse(argv)
    # Libraries' notices to their own developers; ours are printed as messages.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        args.command(args)
    except DferError as error:
        return _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not fail on it again
        return 141
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file: a fault of ours
        return _fail(_told(error))
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _told(error: OSError) -> StorageError:
    """What the system said of a file, as a message."""
    from dfer.local_files import is_denied
    from dfer.storage import storage_error

    if error.filename and is_denied(error):
        return storage_error(error.filename, error, doing="to read or write it", then="; then repeat the command.")
    return StorageError(message(
        error.filename or "a file", expected="to read or write it", got=str(error.strerror),
        do="Correct the path or its permissions, or free space; then repeat the command.",
    ))  # fmt: skip


def _fail(error: DferError) -> int:
    if _speaks() or not isinstance(error, UsageError):
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _speaks() -> bool:
    """Whether this process tells of wrong usage: under a launcher the first one of each node, since a file may be
    missing on one. LOCAL_RANK alone may be left over from another job."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("DFER_LAUNCHER_PID") == str(os.getppid())
    return not launched or os.environ.get("LOCAL_RANK", "0") == "0"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a command. Overrides may stand behind options too, which argparse does not take by itself."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    stray = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(args, "overrides")]
    if stray:
        top.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The whole command line, with an example for every command."""
    top = argparse.ArgumentParser(prog="dfer", description="Recognise facial expressions in video.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("train", _train, "train one fold and evaluate it; continues an existing run folder"),
        ("crossval", _crossval, "train all folds one after another, then write the report; continues"),
    ):
        sub = _command(commands, name, command, text)
        sub.add_argument("config", type=Path, help="YAML file, see configs/")
        sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="values in place of the file's; text as it is")
        sub.add_argument("--dry-run", action="store_true", help="print what would be trained on what, and stop")
        if name == "crossval":
            sub.add_argument("--folds", type=_numbers, default=[], metavar="1,2", help="only these folds")
    sub = _command(commands, "evaluate", _evaluate, "evaluate a run, finished or not, or a configuration's weights")
    sub.add_argument("source", help="run folder (also s3://...), or YAML file")
    sub.add_argument("overrides", nargs="*", metavar="a.b=c")
    sub.add_argument("--out", metavar="FOLDER", help="write a run's results here (also s3://...), none into the run")
    sub = _command(commands, "predict", _predict, "expressions of clips given as folders of face frames, one by one")
    sub.add_argument("run", help="run folder of one fold (also s3://...)")
    sub.add_argument("clips", nargs="+", type=Path, metavar="FOLDER")
    sub.add_argument("--csv", type=Path, help="write all class probabilities here, a row a clip")
    sub = _command(commands, "report", _report, "write Markdown, JSON and one HTML page from a run folder")
    sub.add_argument("run", help="run folder (also s3://...)")
    sub.add_argument("--out", metavar="FOLDER", help="write them here (also s3://...); default: RUN/report")
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="WHAT")
    sub = _command(bench, "loader", _bench_loader, "frames/s a core, and the share of a bare decode loop")
    sub.add_argument("shards", help="shard folder of 224 px frames, or its URL with --against")
    sub.add_argument("--against", metavar="FOLDER", help="a local copy of the shards to measure the URL beside")
    sub.add_argument("--rounds", type=int, default=5, help="with --against: epochs of each (default 5)")
    sub.add_argument("--seconds", type=float, default=10.0)
    sub = _command(bench, "resume", _bench_resume, "seconds to the next step of a killed run, beside a fresh one")
    sub.add_argument("config", type=Path, help="YAML file, see configs/")
    sub.add_argument("overrides", nargs="*", metavar="a.b=c")
    sub = _command(bench, "save", _bench_save, "what saving in the background costs a step at full size")
    sub.add_argument("--arch", default="ViT-B-32-quickgelu")
    sub.add_argument("--clips", type=int, default=2)
    sub.add_argument("--saves", type=int, default=5)
    sub.add_argument("--out", help="folder or URL to save to; default: a temporary folder")
    _command(bench, "scale", _bench_scale, "calculate what 8, 64 and 512 GPUs would do (docs/scale.md)")
    sub = _command(bench, "step", _bench_step, "clips/s of a training step at full size")
    sub.add_argument("--arch", default="ViT-B-32-quickgelu")
    sub.add_argument("--clips", type=int, default=2)
    sub.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    sub.add_argument("--steps", type=int, default=5)
    sub.add_argument("--threads", type=int)
    return top


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], None],
    text: str,
) -> argparse.ArgumentParser:
    key = name if name in EXAMPLES else f"bench {name}"
    sub = commands.add_parser(
        name, help=text, description=text, epilog=f"examples:\n  {EXAMPLES[key]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.set_defaults(command=command)
    return sub


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2, got {text!r}") from None


# Rooms are imported inside the commands: `--help` and mistakes in arguments answer at once, not after torch.


def _train(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer import config
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.config import RunConfig
    from dfer.jobs.describe import describe
    from dfer.jobs.train import train

    chosen, world = config.load(args.config, RunConfig, args.overrides), from_environment()
    if args.dry_run:
        print(config.to_yaml(chosen) + "\n" + describe(chosen, world))
        return
    stop = Stop()
    with process_group(world), stop.on_signals():  # until the others have come a signal ends it
        result = train(chosen, world, stop)
    if world.is_first:
        print(_scores(chosen.run, result))


def _crossval(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer import config
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.config import RunConfig
    from dfer.jobs.crossval import crossval
    from dfer.jobs.describe import describe
    from dfer.jobs.parts import known_folds

    chosen, world = config.load(args.config, RunConfig, args.overrides), from_environment()
    if args.dry_run:
        print(config.to_yaml(chosen))
        for fold in args.folds or known_folds(chosen):
            print(describe(replace(chosen, fold=fold), world))
        return
    stop = Stop()
    with process_group(world), stop.on_signals():  # until the others have come a signal ends it
        crossval(chosen, world, only=args.folds, stop=stop)
    if world.is_first:
        _show_report(chosen.run)


def _evaluate(args: argparse.Namespace) -> None:
    refuse_copies(os.environ)
    from dfer import config
    from dfer.distributed import from_environment, process_group
    from dfer.jobs.config import RunConfig
    from dfer.jobs.evaluate import evaluate_run
    from dfer.storage import Folder

    trained, world = _is_folder(args.source), from_environment()
    if trained:
        chosen = replace(_config_of(args.source, args.overrides), run=args.source)
    elif not Path(args.source).exists():
        do = "Correct the path, or train first: dfer train CONFIG"
        raise UsageError(message(args.source, expected="a run folder or a YAML file", got="neither", do=do))
    else:
        chosen = config.load(Path(args.source), RunConfig, args.overrides)
    if args.out and not trained:
        do = "Give the folder as run=FOLDER."
        raise UsageError(message("--out", expected="a run folder to evaluate", got="a configuration", do=do))
    out = Folder(args.out, what="--out") if args.out else None
    with process_group(world):
        result = evaluate_run(chosen, world, trained=trained, out=out)
    if world.is_first:
        print(_scores(chosen.run, result))


def _scores(run_folder: str, result: "FoldResult") -> str:
    on = f" on {result.data}" if result.generated else ""
    line = f"{run_folder}: WAR {100 * result.war:.2f}, UAR {100 * result.uar:.2f}{on} ({result.selection})"
    if result.complete:
        return line
    from dfer.evaluation.results import file_of

    where = f"epoch {result.epoch} of {result.epochs}, in {file_of(result)}"
    return f"{line}; the training is not complete: {where}"


def _is_folder(source: str) -> bool:
    return "://" in source or Path(source).is_dir()


def _config_of(source: str, overrides: Sequence[str] = ()) -> "RunConfig":
    """The configuration of a run folder. Raises UsageError when it is none of a single run."""
    from dfer.config import load_text
    from dfer.jobs.config import RunConfig
    from dfer.run.layout import CONFIG, MAX_CONFIG_BYTES
    from dfer.storage import Folder

    home = Folder(source, what="the run folder")
    text = home.read(CONFIG, most=MAX_CONFIG_BYTES)
    if text is None:
        folds = [name for name in home.folders() if name.startswith("fold_") and (home / name).exists(CONFIG)]
        do = f"Give one of its folds: {home / folds[0]}" if folds else "Train first: dfer train CONFIG"
        raise UsageError(message(home, expected=f"the run folder of one fold, with {CONFIG}", got="none", do=do))
    return load_text(text, RunConfig, overrides, where=home.where(CONFIG))


def _predict(args: argparse.Namespace) -> None:
    from dfer.distributed import from_environment
    from dfer.jobs.predict import Table, likeliest, predict

    chosen = replace(_config_of(args.run), run=args.run)
    bad: list[tuple[Path, DataError]] = []
    with closing(Table(args.csv)) if args.csv else nullcontext() as table:
        for clip, answer in predict(chosen, args.clips, from_environment()):
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
    """Raise DataError with the clips that have no answer; of a clip that came alone, its own."""
    if len(clips) == 1 and bad:
        raise bad[0][1]
    if bad:
        names = ", ".join(str(clip) for clip, _ in bad[:20]) + (" and more" if len(bad) > 20 else "")
        expected, got = f"to read all {len(clips)} clips", f"{len(bad)} that cannot be read: {names}"
        do = "Mend or leave out those; the others were answered."
        raise DataError(message("predict", expected=expected, got=got, do=do))


def _report(args: argparse.Namespace) -> None:
    from dfer.report.write import write_report
    from dfer.storage import Folder

    out = Folder(args.out, what="--out") if args.out else None
    write_report(Folder(args.run, what="the run folder"), out=out)
    _show_report(args.run, out)


def _show_report(run_folder: str, out: "Folder | None" = None) -> None:
    from dfer.report.crossval import summarise
    from dfer.report.tables import text_table
    from dfer.storage import Folder

    home = Folder(run_folder)
    print(text_table(summarise(home)))
    page = (out or home / "report") / "index.html"
    print(f"\nReport: {page.local.resolve() if page.local else page}")


def _bench_loader(args: argparse.Namespace) -> None:
    from dfer.bench.loader import bench_loader
    from dfer.bench.streaming import bench_streaming

    if args.against:
        bench_streaming(args.shards, against=args.against, rounds=args.rounds)
    else:
        bench_loader(args.shards, seconds=args.seconds)


def _bench_resume(args: argparse.Namespace) -> None:
    from dfer.bench.resume import bench_resume

    bench_resume(args.config, args.overrides)


def _bench_save(args: argparse.Namespace) -> None:
    from dfer.bench.save import bench_save

    bench_save(arch=args.arch, clips=args.clips, saves=args.saves, out=args.out)


def _bench_scale(_: argparse.Namespace) -> None:
    from dfer.bench.scale import bench_scale

    bench_scale()


def _bench_step(args: argparse.Namespace) -> None:
    from dfer.bench.step import bench_step

    bench_step(
        arch=args.arch, clips=args.clips, precision=args.precision, steps=args.steps, threads=args.threads
    )  # fmt: skip


def run_and_leave() -> NoReturn:
    """The command `dfer`: `main`, after which nothing of what libraries do at a process's end holds it up."""
    Leaving().after(main)


if __name__ == "__main__":
    run_and_leave()
