"""Work in processes: what Ctrl-C, an error and a killed worker do to it."""

import os
import signal
import threading
import time

import pytest

from dfer.errors import StorageError
from shards import pool


class Bar:
    """A progress bar that presses Ctrl-C while it is updated, `times` times."""

    def __init__(self, times: int = 0) -> None:
        self.n, self.times, self.undisturbed = 0, times, False

    def update(self, amount: int) -> None:
        self.n += amount
        while self.times:
            self.times -= 1
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)
        self.undisturbed = True


def slow(item: int) -> int:
    for _ in range(20):
        time.sleep(0.01)
        pool.tick(1)
    return item


def quick(item: int) -> int:
    pool.tick(3)
    return item * item


def fails(item: int) -> None:
    raise ValueError(str(item))


def leaves(_item: int) -> None:
    """As a process does that the kernel kills because memory ran out: without a word."""
    os._exit(1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_ordered_and_progress_is_whole(jobs: int) -> None:
    bar = Bar()
    assert pool.run(quick, list(range(40)), jobs=jobs, bar=bar) == [item * item for item in range(40)]
    assert bar.n == 120


def test_ctrl_c_interrupts_between_two_looks_only() -> None:
    """Raised elsewhere it can leave a lock of the pool taken: its end would wait for that lock for ever."""
    bar = Bar(times=1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.run(slow, list(range(1000)), jobs=2, bar=bar)
    assert bar.undisturbed and time.monotonic() - began < 60  # the whole takes 100 s
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    bar = Bar(times=2)
    with pytest.raises(KeyboardInterrupt):
        pool.run(slow, list(range(1000)), jobs=2, bar=bar)
    assert not bar.undisturbed


def test_ctrl_c_after_the_last_result_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), pool._ctrl_c_as_flag():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda _number, _frame: None])
def test_another_handler_of_sigint_stays(handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pool._ctrl_c_as_flag() as raise_if_interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)
            raise_if_interrupted()
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_may_run_it_too() -> None:
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(pool.run(quick, [1, 2, 3], jobs=2, bar=Bar())))
    thread.start()
    thread.join()
    assert results == [[1, 4, 9]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_is_raised(jobs: int) -> None:
    with pytest.raises(ValueError, match=r"^\d+$"):
        pool.run(fails, list(range(40)), jobs=jobs, bar=Bar())


def test_a_worker_that_dies_is_explained() -> None:
    with pytest.raises(StorageError) as caught:
        pool.run(leaves, [1, 2, 3], jobs=2, bar=Bar())
    assert "worker process: expected to finish its work, got killed, most likely because memory ran out" in str(
        caught.value
    )
    assert str(caught.value).endswith("Run the same command again with fewer --jobs; what is finished is kept.")
