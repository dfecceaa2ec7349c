"""What all tests share: quiet, repeatable settings for hypothesis and thread counts that suit a shared machine."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Deadlines measure the machine, not the code; the derandomised profile makes a failure repeat.
settings.register_profile("dfer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dfer")
