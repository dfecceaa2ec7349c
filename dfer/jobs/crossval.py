"""All folds of a configuration one after another, then the report."""

from collections.abc import Sequence
from dataclasses import replace

from dfer.config import ConfigProblem
from dfer.distributed import World, barrier, on_first
from dfer.errors import UsageError
from dfer.interruption import Stop
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import known_folds
from dfer.jobs.train import train
from dfer.report.write import ReportPaths, write_report
from dfer.run.layout import CONFIG
from dfer.storage import Folder


def crossval(
    config: RunConfig, world: World, *, only: Sequence[int] = (), stop: Stop | None = None
) -> ReportPaths | None:
    """All folds one after another, each in `run`/fold_k, then the report (on the first rank). Continues where it was.

    only: train just these folds; the report then says which are missing.
    """
    known = known_folds(config)
    wanted = sorted(set(only)) or known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigProblem(f"folds: expected some of {', '.join(map(str, known))}, got {unknown[0]}. Correct --folds")
    home = Folder(config.run, what="run")
    if on_first(lambda: home.exists(CONFIG), world):
        raise UsageError(
            f"{config.run}: expected a folder for {len(known)} folds, got the run of a single one. "
            "Choose another one with run=FOLDER."
        )
    for number in wanted:
        if world.is_first:
            print(f"== fold {number} of {len(known)}", flush=True)
        train(replace(config, fold=number, run=str(home / f"fold_{number}")), world, stop)
        barrier()
    return write_report(home, RunConfig) if world.is_first else None
