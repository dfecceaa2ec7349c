"""The plugin that shares out, times and tidies up the tests: on small suites of its own, in one and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import suite

ROOT = Path(__file__).parents[2]
HANGS = """
import subprocess, sys, time
from pathlib import Path
import pytest

@pytest.mark.timeout(1)
def test_hangs():
    Path("pid").write_text(str(subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE).pid))
    time.sleep(60)

def test_its_process_is_gone():
    stat = Path(f"/proc/{Path('pid').read_text()}/stat")
    until = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
"""
LEAVES = """
import subprocess, sys
import pytest
from tests import suite

@pytest.fixture(autouse=True, scope="session")
def no_grace():  # the process sleeps far longer than the suite would wait for it
    suite.GRACE_S = 0.2

def test_leaves_a_process_of_a_process():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(99)'])"
    assert subprocess.run([sys.executable, "-S", "-c", code]).returncode == 0
"""
FIXTURES = """
import subprocess, sys
from pathlib import Path
import pytest
from tests.processes import alive

CHILD = "subprocess.Popen([sys.executable, '-S', '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)"
SERVER = f"import subprocess, sys; kept = [print({CHILD}.pid, flush=True) for line in sys.stdin]"

@pytest.fixture(scope="session")
def server():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", SERVER], text=True, **pipes) as process:
        yield process
        process.stdin.close()

@pytest.fixture
def broken():
    raise OSError

def test_fails(server):
    print(file=server.stdin, flush=True)
    Path("pid").write_text(server.stdout.readline())
    raise AssertionError

def test_lacks_a_fixture(server, broken):
    pass

def test_finds_both(server):
    assert server.poll() is None and alive(int(Path("pid").read_text()))
"""


def run(folder: Path, *options: str, **files: str) -> "subprocess.CompletedProcess[str]":
    """A suite of these files below `folder`/tests/unit, under the plugin and without this suite's settings."""
    for name, text in files.items():
        path = folder / "tests" / "unit" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    plugins = ["-p", "tests.suite", "-p", "xdist", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder), *plugins, *options, "tests"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *words]
    env = {**own, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others take a second to import
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)


PROCESSES = pytest.mark.parametrize("processes", [(), ("-n", "2", "--dist", "loadgroup")], ids=["one", "two"])


@PROCESSES
def test_a_test_that_hangs_fails_and_takes_its_processes_along(tmp_path: Path, processes: tuple[str, ...]) -> None:
    done = run(tmp_path, *processes, test_hangs=HANGS)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "Timeout" in done.stdout and "outlived" not in done.stdout


@PROCESSES
def test_what_fixtures_started_outlives_a_test_that_fails(tmp_path: Path, processes: tuple[str, ...]) -> None:
    """Also what a server of a fixture starts while the test runs; the fixture ends it."""
    done = run(tmp_path, *processes, test_fixtures=FIXTURES)
    assert "1 failed, 1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "outlived" not in done.stdout


@PROCESSES
def test_a_process_that_outlives_the_tests_makes_the_run_fail(tmp_path: Path, processes: tuple[str, ...]) -> None:
    done = run(tmp_path, *processes, test_leaves=LEAVES)
    assert done.returncode == 1 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert "1 processes outlived the tests and were ended" in done.stdout and "time.sleep(99)" in done.stdout
    pid = done.stdout.partition(" -S -c")[0].rpartition("\n")[2].partition(":")[0]
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_durations_are_written_whoever_ran_the_test(tmp_path: Path) -> None:
    names = ["tests/unit/test_a.py::test_x[a@b.c]", "tests/unit/test_b.py::test_x[a@b.c]"]
    text = "import pytest\n@pytest.mark.parametrize('x', ['a@b.c'])\ndef test_x(x): pass\n"
    text += "@pytest.mark.skip\ndef test_skipped(): pass\n"
    done = run(tmp_path, "-n", "2", "--dist", "loadgroup", "--durations-json", "out/d.json", test_a=text, test_b=text)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out" / "d.json").read_text())
    assert list(written["seconds"]) == names and written["cores"] == len(os.sched_getaffinity(0))


def test_a_slow_test_without_a_reason_is_listed_and_does_not_fail(tmp_path: Path) -> None:
    first, second = "def test_a(): time.sleep(1.1)\n", "@pytest.mark.slow('sleeps')\ndef test_b(): time.sleep(1.1)\n"
    text = f"import time, pytest\nfrom tests import suite\nsuite.UNIT_S = 1.0\n{first}{second}"
    done = run(tmp_path, test_a=text)
    assert done.returncode == 0 and "1 tests over their budget" in done.stdout, done.stdout
    assert " s of 1  tests/unit/test_a.py::test_a" in done.stdout and "test_a.py::test_b" not in done.stdout


def test_a_group_stays_in_one_process(tmp_path: Path) -> None:
    text = "import os, pytest\nfrom pathlib import Path\n"
    text += "@pytest.mark.parametrize('x', ['a@b', 'c'])\ndef test_x(x):\n"
    text += "    with Path('out').open('a') as out: out.write(f'{__name__} {os.getpid()}\\n')\n"
    files = dict.fromkeys(("test_1", "test_2", "test_3", "test_4"), text)
    done = run(tmp_path, "-n", "2", "--dist", "loadgroup", **files)
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout + done.stderr
    ran = [tuple(line.split()) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(ran) == 8 and len(set(ran)) == 4 and len({pid for _, pid in ran}) == 2


def test_the_longest_files_begin_first_and_new_ones_are_not_taken_for_short(tmp_path: Path) -> None:
    """The table knows two of them; of a third, all is skipped."""
    text = "import pytest\nfrom pathlib import Path\n{marks}\n"
    text += "def test_x():\n    with Path('out').open('a') as out: out.write(f'{{__name__}}\\n')\n"
    skipped = "@pytest.mark.integration\n@pytest.mark.skip"
    marks = {"test_a": "", "test_b": "", "test_new": "@pytest.mark.integration", "test_skipped": skipped}
    table = {f"tests/unit/{name}.py::test_x": seconds for name, seconds in (("test_a", 1.0), ("test_b", 9.0))}
    (tmp_path / "conftest.py").write_text(f"from tests import suite\nsuite.known_durations = lambda: {table}\n")
    files = {name: text.format(marks=mark) for name, mark in marks.items()}
    done = run(tmp_path, "-n", "1", "--dist", "loadgroup", **files)
    assert done.returncode == 0 and "3 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "out").read_text().split() == ["test_b", "test_new", "test_a"]


def test_what_became_slower_is_listed() -> None:
    before = {"a": 10.0, "b": 10.0, "c": 0.1, "gone": 5.0}
    assert suite.slower({"a": 21.0, "b": 19.0, "c": 3.0, "new": 99.0}, before) == ["  10.0 s -> 21.0 s  a"]


def test_files_stay_together_and_what_measures_is_one_group() -> None:
    tests = {
        "tests/unit/test_x.py::test_a[1]": "tests/unit/test_x.py",
        "tests/cluster/test_ray.py::test_a": "alone",
        "tests/integration/test_object_storage.py::test_b[x]": "alone",
        "tests/hostile/test_hostile.py::test_hostile_files[tars]": "tars",
    }
    for test, group in tests.items():
        assert suite.group_of(test) == group


def test_a_folder_is_made_once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    """One that failed is made anew."""
    name, seen = f"once-{os.getpid()}-{id(request)}", []
    with pytest.raises(ZeroDivisionError), suite.once(tmp_path_factory, name) as (folder, made):
        (folder / "half").touch()
        raise ZeroDivisionError
    for _ in range(2):
        with suite.once(tmp_path_factory, name) as (folder, made):
            seen.append((made, sorted(path.name for path in folder.iterdir())))
            (folder / "whole").touch()
    assert seen == [(False, []), (True, ["whole"])]
