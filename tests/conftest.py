"""What all tests share: surroundings of their own, and quiet, repeatable settings for hypothesis."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import surroundings

pytest_plugins = ["tests.suite"]

# Here and not in a fixture: modules that read the home folder are imported when tests are collected.
_HOME = tempfile.TemporaryDirectory(prefix="dfer-test-home-", ignore_cleanup_errors=True)
surroundings.reset(home=_HOME.name)
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Test processes beside each other share the cores: threads of one would wait, spinning, for those of another.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(workers)))

# Deadlines measure the machine, not the code; the derandomised profile makes a failure repeat.
settings.register_profile("dfer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dfer")


@pytest.fixture(autouse=True, scope="session")
def _own_cache() -> Iterator[None]:
    """Shards are cached in a folder of the test run's, also by the processes it starts."""
    with tempfile.TemporaryDirectory(prefix="dfer-test-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFER_CACHE", folder)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device and skip, saying so, without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
