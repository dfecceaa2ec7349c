"""How the tests are shared out, timed and tidied up after: a pytest plugin that tests/conftest.py loads.

Under `-n`, all tests of a file go to one process, since they share its fixtures, and files that take long begin first.
Files that measure bytes or wait for the machine's hosts form one group, so that no two of them run at a time.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from tests import warm
from tests.processes import alive, children, command_line

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "benchmarks" / "test_durations.json"
ALONE = ("tests/cluster/", "tests/integration/test_object_storage.py")
"""Files that count bytes or rely on times: one after another."""
APART = ("tests/hostile/",)
"""Files whose tests share nothing: each goes where there is room."""
UNIT_S, INTEGRATION_S = 2.0, 40.0
"""Seconds above which a test needs a written reason, as `@pytest.mark.slow("why")`."""
NEW_UNIT_S, NEW_INTEGRATION_S = 0.1, 4.0
"""Seconds that a test is taken for when the table does not know it yet."""
GRACE_S = 5.0
"""Seconds after the last test in which processes may still end by themselves."""
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_PR_SET_CHILD_SUBREAPER = 36

_spent: dict[str, float] = defaultdict(float)
_reasons: set[str] = set()
_skipped: set[str] = set()
_budgets: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dfer")
    group.addoption("--long", action="store_true", help="the long form: everything that docs/testing.md lists under it")
    group.addoption("--durations-json", type=Path, metavar="FILE", help="write the seconds of every test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """The long form begins every process anew. What a process leaves behind becomes a child of this one."""
    if config.getoption("--long"):
        os.environ[warm.COLD] = "1"
        os.environ["DFER_TEST_LONG"] = "1"
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is of the long form only; group by file; the files that took longest first, under `-n`."""
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="of the long form; make test-all runs it"))
    if hasattr(config, "workerinput"):
        seconds = _by_group(expected_durations(items))
        items.sort(key=lambda item: -seconds[group_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With `--dist loadgroup`: whole groups, in the order of the collection.

    pytest-xdist 3.8 writes marked groups into names of tests, which pytest 9.2 does not let it change; no error tells.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def group_of(test: str) -> str:
    """The tests that one process runs one after another: those of a file, or all that must be alone."""
    if test.startswith(APART):
        return test.partition("[")[2].rstrip("]") or test.partition("::")[2]
    return "alone" if test.startswith(ALONE) else test.partition("::")[0]


def known_durations() -> dict[str, float]:
    """Seconds of every test when the table was last written."""
    return json.loads(TABLE.read_text())["seconds"] if TABLE.exists() else {}


def expected_durations(items: list[pytest.Item]) -> dict[str, float]:
    """Seconds that the tests will take: what the table says; of a new one, a guess; none of one that is skipped.

    Without the guess, a new file of long tests would begin last, when the other test processes are done.
    """
    known, found = known_durations(), {}
    for item in items:
        guess = NEW_INTEGRATION_S if {"integration", "cluster"} & set(item.keywords) else NEW_UNIT_S
        skipped = item.get_closest_marker("skip") is not None
        found[item.nodeid] = 0.0 if skipped else known.get(item.nodeid, guess)
    return found


def _by_group(seconds: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for test, spent in seconds.items():
        found[group_of(test)] += spent
    return found


# Durations: a report, never a reason to fail


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called in the process that reports, for the tests of all."""
    test = report.nodeid
    if report.skipped or test in _skipped:
        _skipped.add(test)
        return
    _spent[test] += report.duration
    _budgets[test] = INTEGRATION_S if {"integration", "cluster"} & set(report.keywords) else UNIT_S
    if "slow" in report.keywords:
        _reasons.add(test)


def too_slow(seconds: dict[str, float], budgets: dict[str, float], reasons: set[str]) -> list[str]:
    """A line for every test that took longer than its kind may, and gives no reason."""
    found = [test for test, spent in seconds.items() if spent > budgets[test] and test not in reasons]
    return [
        f"{seconds[test]:6.1f} s of {budgets[test]:.0f}  {test}"
        for test in sorted(found, key=lambda test: -seconds[test])
    ]


def slower(
    seconds: dict[str, float], before: dict[str, float], *, factor: float = 2.0, least: float = 5.0
) -> list[str]:
    """A line for every test that takes more than `factor` times what the table says, and `least` seconds more."""
    found = {
        test: spent - before[test]
        for test, spent in seconds.items()
        if test in before and spent > factor * before[test] and spent > before[test] + least
    }
    return [f"{before[t]:6.1f} s -> {seconds[t]:.1f} s  {t}" for t in sorted(found, key=lambda test: -found[test])]


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    lines = {
        "over their budget, without @pytest.mark.slow(reason)": too_slow(_spent, _budgets, _reasons),
        f"slower than in {TABLE.relative_to(ROOT)}": slower(_spent, known_durations()),
    }
    for title, found in lines.items():
        if found:
            terminalreporter.section(f"{len(found)} tests {title}", sep="-")
            terminalreporter.write_line("\n".join(found[:30]))
    if _left:
        terminalreporter.section(f"{len(_left)} processes outlived the tests and were ended", sep="-")
        terminalreporter.write_line("\n".join(_left))
    path = config.getoption("--durations-json")
    if path and not hasattr(config, "workerinput"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_table(_spent))
        terminalreporter.write_line(f"durations: {path}")


def as_table(seconds: dict[str, float]) -> str:
    """The file: when, on how many cores, how long in all, and every test's seconds, a line each."""
    day = time.strftime("%Y-%m-%d", time.gmtime())
    head = {"date": day, "cores": len(os.sched_getaffinity(0)), "sum": round(sum(seconds.values()), 1)}
    kept = {test: round(spent, 2) for test, spent in sorted(seconds.items())}
    return json.dumps({**head, "seconds": kept}, indent=1) + "\n"


# Processes that nobody ended


_before = pytest.StashKey[set[int]]()
_failed = pytest.StashKey[bool]()
_left: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """What runs before the test's own lines, and all that it starts, belongs to fixtures, which end it themselves."""
    item.stash[_before] = {pid for pid, _ in running()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Processes that a failed test left at work end with it: they would take the time of all that follow.

    Where a fixture failed, no line of the test has run.
    """
    if item.stash.get(_failed, False) and _before in item.stash:
        _kill([pid for pid, _ in running(apart=item.stash[_before])])


def running(*, apart: Collection[int] = ()) -> list[tuple[int, str]]:
    """(pid, command line) of everything that came from this process and runs, but not from those `apart`.

    Not the warm parent and the helpers of Python, whose data workers end with this process or their loader.
    """
    found, waiting, mine = [], children(os.getpid()), set(children(os.getpid()))
    while waiting:
        pid = waiting.pop()
        words = command_line(pid)
        if pid in apart or (pid in mine and (pid in warm.pids() or any(name in words for name in HELPERS))):
            continue
        waiting += children(pid)
        if alive(pid):
            found.append((pid, words))
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No process may outlive the tests: those that do are named, ended, and make the run fail."""
    warm.close()
    if not session.config.getoption("numprocesses", None):
        until = time.monotonic() + GRACE_S
        while running() and time.monotonic() < until:
            time.sleep(0.1)
        left = running()
        _kill([pid for pid, _ in left])
        _left.extend(f"{pid}: {words}" for pid, words in left)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = _left
    elif _left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """One of several test processes is done: what it found running goes into the report of all."""
    _left.extend(getattr(node, "workeroutput", {}).get("left", []))


# Made once for all test processes


@contextmanager
def once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that the test processes share, and whether it is made already; they wait for the one that makes it.

    It counts as made when the block ends without an error.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = done.exists()
        if not made:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, made
        done.touch()
