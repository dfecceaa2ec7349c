"""Several processes on this machine: the same job that a cluster runs, started by torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dfer.errors import UsageError, message


def command(verb: str, config: Path, overrides: Sequence[str], *, processes: int) -> list[str]:
    """The command line that runs `dfer VERB CONFIG` in `processes` ranks on this machine.

    Raises:
        UsageError: fewer than one process.
    """
    if processes < 1:
        raise UsageError(
            message("--processes", expected="1 or more", got=str(processes), do="One a GPU, or a few CPU processes.")
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "-m", "dfer", verb, str(config), *overrides]


def run(verb: str, config: Path, overrides: Sequence[str], *, processes: int) -> int:
    """Run the job to its end and return its exit code; the ranks share the cores unless OMP_NUM_THREADS is set.

    Raises:
        UsageError: fewer than one process, or a wrong configuration; no process is started then.
    """
    from dfer.config import load
    from dfer.run_config import RunConfig  # here: `--help` and mistakes in arguments do not wait for torch

    words = command(verb, config, overrides, processes=processes)
    load(config, RunConfig, overrides)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(processes, 1))), **os.environ}
    return subprocess.run(words, env=environment, check=False).returncode
