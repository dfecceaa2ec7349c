"""`dfer-launch ray` as a job of a real Ray cluster."""

import json

from tests.cluster.commands import wait_until
from tests.cluster.launched import ROOT
from tests.cluster.ray_bed import RayBed

EXCLUDES = [".venv", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", "demo"]


def submit_job(ray: RayBed, name: str, *words: object, env_vars: dict[str, str] | None = None) -> None:
    """`ray job submit` of `dfer-launch ray` and words, with this checkout as the job's working folder."""
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **(env_vars or {})}
    environment = {"env_vars": variables, "excludes": EXCLUDES}
    options = ["--no-wait", f"--submission-id={name}", f"--working-dir={ROOT}"]
    command = ["dfer-launch", "ray", *map(str, words)]
    ray.ray("job", "submit", *options, f"--runtime-env-json={json.dumps(environment)}", "--", *command, timeout=120)


def state_of(ray: RayBed, name: str) -> str:
    return str(ray.get(f"/api/jobs/{name}")["status"])


def wait_job(ray: RayBed, name: str, state: str = "SUCCEEDED", timeout: float = 240) -> str:
    """Until a job has ended; what it printed."""
    wait_until(lambda: state_of(ray, name) in ("SUCCEEDED", "FAILED", "STOPPED"), timeout, f"the end of job {name}")
    logs = ray.ray("job", "logs", name)
    assert state_of(ray, name) == state, logs[-4000:]
    return logs
