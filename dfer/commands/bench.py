"""`dfer bench`: benchmarks of single rooms on this machine."""

import argparse

from dfer.cli import add_command, add_configs, is_override

EXAMPLES = {
    "features": """dfer bench features demo/shards
dfer bench features data/dfew --arch ViT-B-16-quickgelu""",
    "extract": """dfer bench extract
dfer bench extract --batch 16 --batches 8""",
    "fit": """dfer bench fit
dfer bench fit --pairs 10000 --epochs 50""",
    "index": """dfer bench index
dfer bench index --rows 1000000 --per-shard 128 --facts""",
    "loader": """dfer bench loader demo/shards
dfer bench loader data/dfew --seconds 20
dfer bench loader s3://bucket/dfew --against data/dfew""",
    "resume": """dfer bench resume configs/demo.yaml data.shards=demo/shards""",
    "save": """dfer bench save
dfer bench save --out s3://bucket/bench""",
    "scale": """dfer bench scale""",
    "step": """dfer bench step --precision bf16
dfer bench step --arch ViT-B-16-quickgelu --clips 1
dfer bench step methods/dk_clip sets/mafw --threads 2""",
    "zeroshot": """dfer bench zeroshot
dfer bench zeroshot --pictures 512 --arch ViT-B-16-quickgelu""",
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `bench` with its subcommands."""
    bench = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="WHAT")
    sub = add_command(bench, "index", "seconds to open the index of many stills", EXAMPLES["index"], _bench_index)
    sub.add_argument("--rows", type=int, default=283_000, help="stills (default 283,000: AffectNet's)")
    sub.add_argument("--per-shard", type=int, default=1000)
    sub.add_argument("--facts", action="store_true", help="with subjects, votes and face boxes")
    sub.add_argument("--rounds", type=int, default=5)
    sub = add_command(
        bench, "features", "an epoch that computes features beside one that reads them", EXAMPLES["features"], _features
    )
    sub.add_argument("shards", help="shard folder of 224 px frames")
    sub.add_argument("--arch", default="ViT-B-32-quickgelu")
    sub.add_argument("--batch", type=int, default=16)
    sub = add_command(
        bench, "loader", "frames/s a core, and the share of a bare decode loop", EXAMPLES["loader"], _bench_loader
    )
    sub.add_argument("shards", help="shard folder of 224 px frames, or its URL with --against")
    sub.add_argument("--against", metavar="FOLDER", help="a local copy of the shards to measure the URL beside")
    sub.add_argument("--rounds", type=int, default=5, help="with --against: epochs of each (default 5)")
    sub.add_argument("--seconds", type=float, default=10.0)
    sub = add_command(
        bench,
        "resume",
        "seconds to the next step of a killed run, beside a fresh one",
        EXAMPLES["resume"],
        _bench_resume,
    )
    add_configs(sub)
    sub = add_command(
        bench, "save", "what saving in the background costs a step at full size", EXAMPLES["save"], _bench_save
    )
    sub.add_argument("--arch", default="ViT-B-32-quickgelu")
    sub.add_argument("--clips", type=int, default=2)
    sub.add_argument("--saves", type=int, default=5)
    sub.add_argument("--out", help="folder or URL to save to; default: a temporary folder")
    add_command(
        bench, "scale", "calculate what 8, 64 and 512 GPUs would do (docs/scale.md)", EXAMPLES["scale"], _bench_scale
    )
    sub = add_command(bench, "step", "clips/s of a training step at full size", EXAMPLES["step"], _bench_step)
    told = "a run's configuration and a.b=c: measure its forward and backward pass beside its tower's"
    sub.add_argument("words", nargs="*", metavar="CONFIG", help=told)
    sub.add_argument("--arch", default="ViT-B-32-quickgelu", help="of DFER-CLIP, without CONFIG")
    sub.add_argument("--clips", type=int, default=2)
    sub.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    sub.add_argument("--steps", type=int, default=5)
    sub.add_argument("--threads", type=int)
    _add_exp_clip(bench)


def _add_exp_clip(bench: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add those of Exp-CLIP's jobs."""
    sub = add_command(bench, "fit", "seconds and memory of a fit of Exp-CLIP's size", EXAMPLES["fit"], _bench_fit)
    sub.add_argument("--pairs", type=int, default=48_640)
    sub.add_argument("--epochs", type=int, default=5)
    sub.add_argument("--batch", type=int, default=512)
    text = "pictures/s of `extract` beside a bare loop of CLIP and a teacher of 100 M parameters"
    sub = add_command(bench, "extract", text, EXAMPLES["extract"], _bench_extract)
    sub.add_argument("--batch", type=int, default=8)
    sub.add_argument("--batches", type=int, default=9)
    sub.add_argument("--rounds", type=int, default=3)
    sub = add_command(
        bench, "zeroshot", "the cost of a second prompt kind beside the first", EXAMPLES["zeroshot"], _bench_zeroshot
    )
    sub.add_argument("--arch", default="ViT-B-32-quickgelu")
    sub.add_argument("--pictures", type=int, default=3068, help="stills (default 3,068: RAF-DB's test part)")
    sub.add_argument("--workers", type=int, default=2)


def _features(args: argparse.Namespace) -> None:
    from dfer.bench.features import bench_features

    bench_features(args.shards, arch=args.arch, batch=args.batch)


def _bench_fit(args: argparse.Namespace) -> None:
    from dfer.bench.fit import bench_fit

    bench_fit(pairs=args.pairs, epochs=args.epochs, batch=args.batch)


def _bench_extract(args: argparse.Namespace) -> None:
    from dfer.bench.extract import bench_extract

    bench_extract(batch=args.batch, batches=args.batches, rounds=args.rounds)


def _bench_index(args: argparse.Namespace) -> None:
    from dfer.bench.index import bench_index

    bench_index(args.rows, per_shard=args.per_shard, facts=args.facts, rounds=args.rounds)


def _bench_loader(args: argparse.Namespace) -> None:
    from dfer.bench.loader import bench_loader
    from dfer.bench.streaming import bench_streaming

    if args.against:
        bench_streaming(args.shards, against=args.against, rounds=args.rounds)
    else:
        bench_loader(args.shards, seconds=args.seconds)


def _bench_resume(args: argparse.Namespace) -> None:
    from dfer.bench.resume import bench_resume

    bench_resume(args.configs, args.overrides)


def _bench_save(args: argparse.Namespace) -> None:
    from dfer.bench.save import bench_save

    bench_save(arch=args.arch, clips=args.clips, saves=args.saves, out=args.out)


def _bench_scale(_: argparse.Namespace) -> None:
    from dfer.bench.scale import bench_scale

    bench_scale()


def _bench_step(args: argparse.Namespace) -> None:
    from dfer.bench.method import bench_method
    from dfer.bench.step import bench_step

    sizes = {"clips": args.clips, "threads": args.threads}
    if not args.words:
        bench_step(arch=args.arch, precision=args.precision, steps=args.steps, **sizes)
        return
    overrides = [word for word in args.words if is_override(word)]
    configs = [word for word in args.words if not is_override(word)]
    bench_method(configs, overrides, precision=args.precision, rounds=args.steps, **sizes)


def _bench_zeroshot(args: argparse.Namespace) -> None:
    from dfer.bench.zeroshot import bench_zeroshot

    bench_zeroshot(arch=args.arch, pictures=args.pictures, workers=args.workers)
