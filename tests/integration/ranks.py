"""Ranks of one process group, each a process of its own, without a launcher between them and the test."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests import warm
from tests.integration.commands import Done, environment
from tests.servers import free_port


def start_ranks(words: Sequence[object], *, ranks: int, **variables: str) -> "list[subprocess.Popen[str]]":
    """`python WORDS` once a rank, in rank order; each finds the others as torchrun would tell it."""
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    own = environment(**shared, MASTER_PORT=str(free_port()), **variables)
    return [
        warm.Popen(
            [sys.executable, *words],
            env={**own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finish_ranks(words: Sequence[object], *, ranks: int, timeout: float = 400, **variables: str) -> list[Done]:
    """What every rank told; all must succeed. The others of one that fails do not wait for it."""
    processes = start_ranks(words, ranks=ranks, **variables)

    def finish(process: "subprocess.Popen[str]") -> Done:
        out, err = process.communicate(timeout=timeout)
        if process.returncode:
            _kill(processes)
        return Done(words, process.returncode, out, err)

    try:
        with ThreadPoolExecutor(ranks) as each:
            done = list(each.map(finish, processes))
    finally:
        _kill(processes)
    failed = [f"{told.returncode}\n{told.stdout[-3000:]}\n{told.stderr[-6000:]}" for told in done if told.returncode]
    assert not failed, "\n".join(failed)
    return done


def _kill(processes: "Sequence[subprocess.Popen[str]]") -> None:
    for process in processes:
        process.kill()
