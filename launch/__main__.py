"""The command line: `dfer-launch local | slurm | ray CONFIG` and `dfer-launch status | logs | cancel RUN`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dfer import cli
from dfer.config_files import CONFIGS

CLUSTERS = CONFIGS / "clusters"
CLUSTER = "YAML file or name of one, such as clusters/slurm_cpu, see configs/clusters/"
EXAMPLES = {
    "local": """
  dfer-launch local methods/dfer_clip sets/dfew --processes 4
  dfer-launch local methods/dfer_clip sets/dfew --parallel 5
  dfer-launch local configs/demo.yaml --verb train --processes 2 engine.zero=2 --dry-run
  dfer-launch local runs/dfew/dfer_clip/fold_1 --verb evaluate --processes 2""",
    "slurm": """
  dfer-launch slurm methods/dfer_clip sets/dfew cluster.partition=gpu cluster.account=vision
  dfer-launch slurm methods/dfer_clip sets/dfew --only fold_1,fold_2 --dry-run
  dfer-launch slurm configs/demo.yaml --cluster clusters/slurm_cpu run=s3://b/run cluster.folder=logs""",
    "ray": """
  dfer-launch ray methods/dfer_clip sets/dfew cluster.workers=8 run=s3://bucket/run data.shards=s3://bucket/dfew
  ray job submit --working-dir . -- dfer-launch ray configs/demo.yaml run=/shared/run data.shards=/shared/shards
  dfer-launch ray configs/demo.yaml --dry-run""",
    "status": """
  dfer-launch status runs/dfew/dfer_clip
  dfer-launch status s3://bucket/run --json""",
    "logs": """
  dfer-launch logs runs/dfew/dfer_clip fold_2
  dfer-launch logs runs/dfew/dfer_clip""",
    "cancel": """
  dfer-launch cancel runs/dfew/dfer_clip""",
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="dfer-launch", description="Start, watch and stop jobs of several processes.")
    places = top.add_subparsers(required=True, metavar="COMMAND")
    sub = cli.add_command(places, "local", "run on this machine, in several processes", EXAMPLES["local"], _local)
    cli.add_configs(sub, "; or the folder of a run for --verb evaluate")
    sub.add_argument("--processes", type=int, default=1, metavar="N", help="ranks; one a GPU")
    sub.add_argument("--parallel", type=int, default=1, metavar="K", help="parts at a time, each in N processes")
    sub.add_argument("--verb", choices=["train", "crossval", "evaluate"], default="crossval", help="what dfer does")
    _job_options(sub, "print the command of a process, or the parts, instead of running them")
    sub = cli.add_command(
        places,
        "slurm",
        "submit to SLURM: parts as an array, then the report; safe to repeat",
        EXAMPLES["slurm"],
        _slurm,
    )
    cli.add_configs(sub)
    sub.add_argument("--cluster", type=Path, default=CLUSTERS / "slurm.yaml", help=CLUSTER)
    _job_options(sub, "print the scripts for sbatch instead of submitting")
    sub = cli.add_command(
        places, "ray", "run on a Ray cluster, from a driver or inside `ray job submit`", EXAMPLES["ray"], _ray
    )
    cli.add_configs(sub)
    sub.add_argument("--cluster", type=Path, default=CLUSTERS / "ray.yaml", help=CLUSTER)
    _job_options(sub, "print what Ray would be asked for instead of running")
    sub = cli.add_command(
        places, "status", "parts, states, steps, speed, last checkpoints, restarts", EXAMPLES["status"], _status
    )
    sub.add_argument("run", help="run folder over the parts (also s3://...)")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = cli.add_command(places, "logs", "the ends of a part's logs, or of the report's", EXAMPLES["logs"], _logs)
    sub.add_argument("run", help="run folder over the parts (also s3://...)")
    sub.add_argument("part", nargs="?", help="its name, such as fold_2 or seed_2/fold_3")
    sub.add_argument("--lines", type=int, default=40, metavar="N")
    sub = cli.add_command(places, "cancel", "stop all jobs of a run; what is saved stays", EXAMPLES["cancel"], _cancel)
    sub.add_argument("run", help="run folder over the parts (also s3://...)")
    return top


def _job_options(sub: argparse.ArgumentParser, dry_run: str) -> None:
    sub.add_argument("--only", type=cli.names, default=[], metavar="fold_1,fold_2", help="only these parts")
    sub.add_argument("--dry-run", action="store_true", help=dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Arguments of the form a.b=c go to the configuration, cluster.x=c to the cluster."""
    args = cli.parse(parser(), argv)
    said = "what was submitted or runs goes on"
    return cli.exit_code(lambda: args.command(args), interrupted=said)


# The commands import what they need themselves, so that `--help` and mistakes in arguments answer at once.


def _local(args: argparse.Namespace) -> int:
    from launch.local import submit as local

    job = local.Local(
        verb=args.verb,
        configs=args.configs,
        overrides=args.overrides,
        processes=args.processes,
        parallel=args.parallel,
        only=args.only,
    )
    if args.dry_run:
        print(local.described(job))
        return 0
    return local.run(job)


def _slurm(args: argparse.Namespace) -> int:
    from launch.cluster import SlurmCluster, load_cluster, split
    from launch.job import make_job, refuse_one_gpu
    from launch.slurm.submit import Submission

    mine, theirs = split(args.overrides)
    cluster = load_cluster(args.cluster, SlurmCluster, theirs)
    job = make_job(args.configs, mine, args.only, worlds=cluster.of(grouped=True).worlds)
    refuse_one_gpu(job, cluster.gpus)
    submission = Submission(job=job, cluster=cluster.of(grouped=job.module.grouped))
    if args.dry_run:
        print(submission.dry_run())
        return 0
    return submission.submit()


def _ray(args: argparse.Namespace) -> int:
    from launch.cluster import RayCluster, load_cluster, split
    from launch.job import make_job, refuse_one_gpu
    from launch.ray.cluster import refuse_working_folder
    from launch.ray.submit import Submission

    mine, theirs = split(args.overrides)
    cluster = load_cluster(args.cluster, RayCluster, theirs)
    worlds = cluster.of(grouped=True).worlds
    job = make_job(args.configs, mine, args.only, worlds=worlds, check=refuse_working_folder)
    refuse_one_gpu(job, cluster.gpus)
    submission = Submission(job=job, cluster=cluster.of(grouped=job.module.grouped))
    if args.dry_run:
        print(submission.dry_run())
        return 0
    return submission.run()


def _status(args: argparse.Namespace) -> int:
    from launch.status import as_json, status, table

    rows = status(args.run)
    print(as_json(rows) if args.json else table(rows))
    return 0


def _logs(args: argparse.Namespace) -> int:
    from launch.control import logs

    print(logs(args.run, args.part, lines=args.lines))
    return 0


def _cancel(args: argparse.Namespace) -> int:
    from launch.control import cancel

    print("\n".join(cancel(args.run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
