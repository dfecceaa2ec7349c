"""What the bed's own tests run on virtual hosts: module-level functions, so that submitit can pickle them by name."""

import os
import socket
import sys
import time
from pathlib import Path

import submitit


def where(number: int) -> tuple[int, str]:
    """Twice the number, and the host it was doubled on."""
    return 2 * number, socket.gethostname()


class Count:
    """Counts to a number and continues where it was when SLURM asks it to make room."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.now = start

    def __call__(self, end: int, log: Path) -> tuple[int, int]:
        """(where it started, where it ended). The log gets a line when the first number has been counted."""
        while self.now < end:
            time.sleep(0.1)
            self.now += 1
            if self.now == self.start + 1:
                with log.open("a") as out:
                    print(f"start {self.start} on {socket.gethostname()}", file=out)
        return self.start, self.now

    def checkpoint(self, end: int, log: Path) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(Count(self.now), end, log)


def all_reduce(address: str) -> None:
    """Join the group of all tasks of this step over gloo and print host, rank and the sum of the ranks."""
    import torch  # only here: the other jobs start in half the time without it

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    torch.distributed.init_process_group("gloo", init_method=f"tcp://{address}:29500", rank=rank, world_size=size)
    total = torch.full((1_000_000,), float(rank))
    torch.distributed.all_reduce(total)
    print(socket.gethostname(), rank, total.mean().item(), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    all_reduce(sys.argv[1])
