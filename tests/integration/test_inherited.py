"""The suite itself, started as it is in the worst case: in the background of a job, by nobody's profile.

A small part of it stands for the whole: files, rights, signals, processes that are interrupted.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.another_user import folder_for_all

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PART = [
    "tests/unit/test_surroundings.py",
    "tests/unit/test_storage.py",
    "tests/unit/run/test_lease.py",
    "tests/unit/test_rights.py",
    "tests/unit/store/test_cache.py",
    "tests/integration/test_build.py",
]
CHOSEN = "not budget and not fetcher and not command_line and not somebody_elses_run and (not test_build or ctrl_c)"
"""Without those of a second and more that show nothing else here."""


def test_a_part_of_the_suite_passes_however_it_is_started() -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("HOME", "LC_ALL", "DFER_CACHE")}
    start = ["sh", "-c", 'umask 077; trap "" INT; exec nohup "$@"', "sh", sys.executable]
    with folder_for_all() as folder:
        temporary = folder / ("t" * max(79 - len(str(folder)), 1))
        temporary.mkdir()
        temporary.chmod(0o755)
        assert len(str(temporary)) >= 80
        done = subprocess.run(
            [*start, "-m", "pytest", *PART, "-k", CHOSEN, "-p", "no:cacheprovider", "--durations=0"],
            env={**inherited, "LC_ALL": "C", "TMPDIR": str(temporary)},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        left = [path.name for path in temporary.iterdir() if not path.name.startswith("pytest-of-")]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert not left, "tests clean up after themselves"
    for name in ("unit/test_rights.py::test_the_umask", "integration/test_build.py::test_ctrl_c"):
        assert re.search(f"call +tests/{name}", done.stdout)
