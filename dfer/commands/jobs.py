"""`dfer extract | fit | zeroshot`: jobs of their own, each part of which runs in this process, one after another."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfer.cli import add_command, add_configs, names
from dfer.config import ConfigProblem
from dfer.errors import DferError, FencedError, StoppedError, UsageError, message
from dfer.interruption import Stop
from dfer.surroundings import refuse_copies

if TYPE_CHECKING:
    from dfer.jobs.parts import JobModule

VERBS = {
    "extract": (
        "features of unlabelled faces by CLIP and a teacher, stored once; continues",
        """dfer extract exp_clip/extract pairs.pictures=data/caer_s/train
dfer extract exp_clip/extract pairs.teacher.model=models/blip2 --dry-run
dfer extract exp_clip/extract 'sweep.instruction=["Describe the face.", "Name the emotion."]'
dfer-launch slurm exp_clip/extract workers=8""",
    ),
    "fit": (
        "a projection head from stored features, or several with other settings; continues",
        """dfer fit exp_clip/fit
dfer fit exp_clip/fit sweep.temperature=[0.01,0.02,0.05]
torchrun --nproc_per_node 2 -m dfer fit exp_clip/fit""",
    ),
    "zeroshot": (
        "one table: CLIP and projection heads, prompt kinds and data sets, without training",
        """dfer zeroshot exp_clip/zeroshot sets.dfew.shards=data/dfew
dfer zeroshot exp_clip/zeroshot --only dfew,raf_db""",
    ),
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    for name, (text, examples) in VERBS.items():
        sub = add_command(commands, name, text, examples, lambda args, name=name: _run(args, name))
        add_configs(sub)
        sub.add_argument("--only", type=names, default=[], metavar="PART,PART", help="only these parts")
        sub.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")


def _run(args: argparse.Namespace, verb: str) -> None:
    refuse_copies(os.environ)
    from dfer.config import to_yaml
    from dfer.jobs.parts import JOBS, chosen, load_job, module_named

    module, config = load_job(args.configs, args.overrides, JOBS)
    if module is not module_named(JOBS[verb]):
        do = f"Use the command of that job, or give a configuration with job: {verb}."
        got = getattr(config, "job", "another")
        raise ConfigProblem(message("job", expected=f"job: {verb} for `dfer {verb}`", got=str(got), do=do))
    parts = chosen(module.parts(config), args.only)
    from dfer.distributed import from_environment

    world = from_environment()
    if world.size > 1 and not module.grouped:
        if world.local_rank:
            return  # torchrun would end the first process, which alone prints, before it has said why
        expected, got = f"one process, in which `dfer {verb}` runs independent parts", f"{world.size} processes"
        do = "Leave torchrun out. For parts side by side: workers=N with dfer-launch local, slurm or ray."
        raise UsageError(message("torchrun", expected=expected, got=got, do=do))
    module.check(config, parts, [world.size])
    if args.dry_run:
        listed = "\n".join(f"{part.name}: {'done' if module.done(config, part) else 'to do'}" for part in parts)
        print(f"{to_yaml(config)}\n{listed}")
        return
    _run_parts(module, config, parts, world)


def _run_parts(module: "JobModule", config: Any, parts: Any, world: Any) -> None:
    """Run parts one after another, then conclude. A part that fails does not cost the table of the others; of several
    processes, which may have failed in different places, none goes on with the next part.

    Raises:
        DferError: that of the first part that failed, after the conclusion.
    """
    from dfer.distributed import barrier, process_group

    stop, failed = Stop(), list[DferError]()
    with process_group(world), stop.on_signals():
        for part in parts:
            try:
                line = module.run(config, part, world if module.grouped else None, stop)
                barrier()
            except (StoppedError, FencedError):
                raise
            except DferError as error:
                failed.append(error)
                print(f"{part.name}: failed, {error}", file=sys.stderr, flush=True)
                if world.size > 1:
                    break
                continue
            if world.is_first:
                print(line, flush=True)
        if world.is_first:
            _conclude(module, config, failed)
    if failed:
        raise failed[0]


def _conclude(module: "JobModule", config: Any, failed: Sequence[DferError]) -> None:
    """Print the conclusion. Raises DferError if there is none and no part has failed."""
    try:
        print(module.conclude(config), flush=True)
    except DferError as error:
        if not failed:
            raise
        print(f"no conclusion: {error}", file=sys.stderr, flush=True)
