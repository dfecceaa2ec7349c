"""`dfer-shards`: synth, build, verify, show."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from dfer import cli
from dfer.errors import UsageError, without_secrets
from dfer.store.format import Media, data_name
from shards import parts, pool
from shards.build import Made, build, check_numbering, count_clips, listed, missing_clips
from shards.output import storage_errors
from shards.shard import BuildOptions
from shards.show import count_table, describe
from shards.sources import SOURCES
from shards.sources.clips import RawSet
from shards.sources.generated import mark_generated
from shards.verify import load_manifest, verify

SYNTH_EXAMPLES = """
dfer-shards synth dfew demo/raw --clips 60 --seed 1     generated faces in DFEW's layout
dfer-shards synth ferv39k /tmp/ferv --clips 200 --seed 1 --jobs 4
dfer-shards synth ckplus48 /tmp/ck --clips 327           stills: three of each of 327 sequences"""
BUILD_EXAMPLES = """
dfer-shards build dfew /data/DFEW data/dfew --dry-run   what would be built, and what is missing
dfer-shards build dfew /data/DFEW data/dfew --jobs 8
dfer-shards build mafw /data/MAFW data/mafw --allow-missing 3
dfer-shards build dfew /data/DFEW s3://bucket/dfew --part 2/3      on one of three hosts
dfer-shards build dfew /data/DFEW s3://bucket/dfew --finish 3      when the three have ended"""
BUILD_NOTE = """
The same command again continues a build that was stopped and does nothing when nothing changed.
The data sets may not be passed on: keep their shards as private as the raw files.

over several hosts:
  Parts need no other process and run at any time, in any order; their number does not change the result. --finish says
  which parts are missing. OUT_URL is a folder that all hosts share, or a bucket. As a SLURM array of eight tasks:
    job=$(sbatch --parsable --array=1-8 --cpus-per-task=8 --wrap \\
      'dfer-shards build dfew /data/DFEW s3://bucket/dfew --jobs 8 --part $SLURM_ARRAY_TASK_ID/8')
    sbatch --dependency=afterany:$job --wrap 'dfer-shards build dfew /data/DFEW s3://bucket/dfew --finish 8'"""
VERIFY_EXAMPLES = """
dfer-shards verify data/dfew --jobs 8      read back and decode everything
dfer-shards verify data/dfew --quick       hashes and indexes only"""
SHOW_EXAMPLES = """
dfer-shards show data/dfew                 clips per partition and class / published counts"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A user error is one message on the error stream."""
    args = cli.parse(_parser(), arguments)
    return cli.exit_code(lambda: _run(args), interrupted="the same command continues where it stopped")


def _run(args: argparse.Namespace) -> None:
    with storage_errors(getattr(args, "out", "")):
        args.command(args)
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dfer-shards", description="Raw data sets into WebDataset shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_synth(cli.add_command(commands, "synth", "generate faces in a data set's raw layout", SYNTH_EXAMPLES, _synth))
    building = cli.add_command(commands, "build", "build shards, indexes and the manifest", BUILD_EXAMPLES, _build)
    building.epilog = f"{building.epilog}{BUILD_NOTE}"
    _add_build(building)
    verifying = cli.add_command(commands, "verify", "read everything back", VERIFY_EXAMPLES, _verify)
    verifying.add_argument("out", metavar="SHARDS", help="folder or URL of the shards")
    verifying.add_argument("--quick", action="store_true", help="compare hashes and indexes, decode nothing")
    _add_common(verifying)
    showing = cli.add_command(commands, "show", "counts against the published ones", SHOW_EXAMPLES, _show)
    showing.add_argument("out", metavar="SHARDS", help="folder or URL of the shards")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=cli.positive, default=pool.default_jobs(), help="processes (default: all cores)")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="show no progress bar")


def _add_synth(parser: argparse.ArgumentParser) -> None:
    forms = ", or with its form: affectnet_resized, affectnet_folders, fer2013_folders"
    parser.add_argument("dataset", metavar="LAYOUT", help=f"{', '.join(sorted(SOURCES))}{forms}")
    parser.add_argument("out", metavar="OUT", help="folder for the raw tree")
    what = "clips over all partitions; of CK+ and KMU-FED sequences"
    parser.add_argument("--clips", type=cli.positive, required=True, help=what)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same pictures (default 1)")
    sides = "side of the faces in pixels (default: the layout's, 224 for clips)"
    parser.add_argument("--size", type=cli.positive, help=sides)
    _add_common(parser)


def _add_build(parser: argparse.ArgumentParser) -> None:
    defaults = BuildOptions()
    parser.add_argument("dataset", choices=sorted(SOURCES), help="which data set RAW holds")
    parser.add_argument("raw", metavar="RAW", type=Path, help="the data set's root folder")
    parser.add_argument("out", metavar="OUT_URL", help="folder or fsspec URL for the shards")
    media = "form of the stored frames; those that have it are kept byte for byte (default: the data set's)"
    parser.add_argument("--media", choices=get_args(Media), help=media)
    parser.add_argument(
        "--max-side",
        type=int,
        help="longest side of a frame in pixels; larger ones are scaled (default: the data set's, mostly 256)",
    )
    parser.add_argument(
        "--quality", type=int, default=defaults.quality, help="JPEG quality of frames that must be encoded (default 95)"
    )
    parser.add_argument("--clips-per-shard", type=int, default=defaults.clips_per_shard, help="default 128")
    gaps = parser.add_mutually_exclusive_group()
    gaps.add_argument(
        "--strict",
        action="store_const",
        const=0,
        default=0,
        dest="allow_missing",
        help="write no manifest when a clip cannot be packed (default)",
    )
    gaps.add_argument(
        "--allow-missing",
        type=cli.not_negative,
        default=0,
        metavar="N",
        help="accept up to N clips that cannot be packed; the manifest lists them",
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--dry-run", action="store_true", help="print what would be built and write nothing")
    steps.add_argument("--part", type=_part, metavar="K/N", help="make the shards of part K of N only, such as 2/3")
    steps.add_argument(
        "--finish",
        type=cli.positive,
        metavar="N",
        help="make the shards of N parts a data set: check them, write the manifest",
    )
    _add_common(parser)


def _part(text: str) -> parts.BuildPart:
    number, _, of = text.partition("/")
    try:
        return parts.BuildPart(number=cli.positive(number), of=cli.positive(of))
    except (argparse.ArgumentTypeError, UsageError):
        expected = f"K/N, K from 1 to N and N at most {parts.MAX_PARTS}, such as 2/3"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None


def _synth(args: argparse.Namespace) -> None:
    from shards.synthetic import synth  # imported here: a build does not need the drawing code

    synth(
        args.dataset,
        Path(args.out),
        clips=args.clips,
        seed=args.seed,
        jobs=args.jobs,
        size=args.size,
        progress=args.progress,
    )


def _build(args: argparse.Namespace) -> None:
    raw = mark_generated(SOURCES[args.dataset](args.raw), args.raw)
    options = BuildOptions(
        media=args.media or raw.media,
        max_side=raw.max_side if args.max_side is None else args.max_side,
        quality=args.quality,
        clips_per_shard=args.clips_per_shard,
    )
    _tell(raw.notes)
    if args.dry_run:
        _dry_run(raw, args)
    elif args.part:
        _make_part(raw, options, args)
    elif args.finish:
        _finish(raw, options, args)
    else:
        report = build(raw, args.out, options, jobs=args.jobs, allow_missing=args.allow_missing, progress=args.progress)
        _tell(report.notes)
        print(describe(report.manifest))
        print(_outcome(without_secrets(args.out), report.made))


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def _make_part(raw: RawSet, options: BuildOptions, args: argparse.Namespace) -> None:
    made = parts.make(
        raw, args.out, options, args.part, jobs=args.jobs, allow_missing=args.allow_missing, progress=args.progress
    )
    excluded = [item for state in made.states for item in state.excluded]
    if excluded:
        print(f"clips that cannot be packed: {len(excluded)}\n{listed(excluded)}")
    url = without_secrets(args.out)
    print(_outcome(f"{url}, part {args.part}", made))
    print(f"the data set is complete after --finish {args.part.of}")


def _finish(raw: RawSet, options: BuildOptions, args: argparse.Namespace) -> None:
    done = parts.finish(
        raw,
        args.out,
        options,
        of=args.finish,
        advice=parts.ByHand(_command(args, options, raw)),
        jobs=args.jobs,
        allow_missing=args.allow_missing,
        progress=args.progress,
    )
    _tell(done.notes)
    print(describe(done.manifest))
    already = ": nothing to do, it is finished and no part has begun since"
    print(without_secrets(args.out) + (already if done.already else f": finished, made in parts of {args.finish}"))


def _command(args: argparse.Namespace, options: BuildOptions, raw: RawSet) -> str:
    """Return the command line of a part, up to `--part`."""
    defaults = asdict(BuildOptions(media=raw.media, max_side=raw.max_side))
    words = ["dfer-shards", "build", args.dataset, str(args.raw), args.out]
    for name, value in asdict(options).items():
        if value != defaults[name]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _dry_run(raw: RawSet, args: argparse.Namespace) -> None:
    check_numbering(raw)
    frames, missing = missing_clips(raw, jobs=args.jobs, progress=args.progress)
    generated = raw.options.get("generated", "")
    name = data_name(raw.dataset, generated=generated)
    print(f"{name} in {args.raw}: {len(raw.clips)} clips in the split files, {frames} frames")
    print(count_table(raw.dataset, raw.emotions.names, count_clips(raw), generated=bool(generated)))
    print(f"clips without frames: {len(missing)}" + ("\n" + listed(missing) if missing else ""))
    print("nothing was written (--dry-run)")


def _outcome(where: str, made: Made) -> str:
    if made.new == 0:
        return f"{where}: nothing to do, all {made.unchanged} shards are up to date"
    rate = made.frames / max(made.seconds, 1e-3)
    return (
        f"{where}: {made.new} shards made, {made.unchanged} up to date, {made.frames} frames in "
        f"{made.seconds:.1f} s ({rate:.0f} frames/s)"
    )


def _verify(args: argparse.Namespace) -> None:
    report = verify(args.out, quick=args.quick, jobs=args.jobs, progress=args.progress)
    done = "hashes agree" if args.quick else "hashes, tar members, labels agree; every frame decodes"
    print(f"{without_secrets(args.out)}: {report.shards} shards, {report.clips} clips, {report.frames} frames: {done}")


def _show(args: argparse.Namespace) -> None:
    print(describe(load_manifest(args.out)))


if __name__ == "__main__":
    sys.exit(main())
