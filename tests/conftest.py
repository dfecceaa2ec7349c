"""What all tests share: quiet, repeatable settings for hypothesis and thread counts that suit a shared machine."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Deadlines measure the machine, not the code; the derandomised profile makes a failure repeat.
settings.register_profile("dfer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dfer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device and skip, saying so, without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
