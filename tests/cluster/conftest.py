"""The beds, each made once for all tests that ask for it and put in order before each of them.

Cluster tests skip, saying why, where they cannot run; the long ones, marked `cluster(long=True)`, also where they were
not asked for by `-m cluster`, so that `make test` stays quick.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Network
from tests.cluster.launched import STEPS, launch
from tests.cluster.ray_bed import RayBed
from tests.cluster.slurm import SlurmBed
from tests.integration import commands
from tests.servers import S3, rclone

# What install.sh installs, as far as the beds call it.
PROGRAMS = ["slurmctld", "slurmd", "slurmdbd", "srun", "munged", "mariadbd", "bridge", "unshare", "setpriv", "pkill"]

# Where the daemons are; `su` leaves it out.
os.environ["PATH"] += ":/usr/sbin:/sbin"


def obstacle() -> str | None:
    """Why no virtual host can be started here."""
    if os.geteuid() != 0:
        return "virtual hosts need root"
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    return f"not installed: {', '.join(missing)}; make test-cluster installs them" if missing else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    why = obstacle()
    asked = "cluster" in config.getoption("markexpr")
    for item in items:
        mark = item.get_closest_marker("cluster")
        if mark and why:
            item.add_marker(pytest.mark.skip(reason=why))
        elif mark and mark.kwargs.get("long") and not asked:
            item.add_marker(pytest.mark.skip(reason="a long cluster test; make test-cluster runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with the ends of the daemons' logs, which the bed takes along when it ends."""
    report = yield
    network = getattr(item, "funcargs", {}).get("network")
    if report.failed and network:
        report.sections.append(("logs of the beds", network.log()))
    return report


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """The bridge on which all beds of a session stand; the tests are at `network.gateway`."""
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def slurm_bed(network: Network) -> Iterator[SlurmBed]:
    with SlurmBed(network) as bed:
        yield bed


@pytest.fixture
def slurm(slurm_bed: SlurmBed) -> SlurmBed:
    """SLURM over four hosts, all idle: `node1` to `node4`, four cores and two pretended GPUs each."""
    slurm_bed.reset()
    return slurm_bed


@pytest.fixture(scope="session")
def ray_bed(network: Network) -> Iterator[RayBed]:
    with RayBed(network) as bed:
        yield bed


@pytest.fixture
def ray(ray_bed: RayBed) -> RayBed:
    """Ray over three hosts, all alive, without jobs: `head`, `worker1`, `worker2`, two cores each."""
    ray_bed.reset()
    return ray_bed


@pytest.fixture
def s3(network: Network, tmp_path: Path) -> Iterator[S3]:
    """An S3 server over `tmp_path / "s3"` that all virtual hosts reach: `s3.url`, and `s3.environment` for clients."""
    with rclone(tmp_path / "s3", address=network.gateway) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = commands.make_shards(tmp_path_factory.mktemp("dfew"), "dfew", clips=35)
    path = folder / "tiny.yaml"
    path.write_text(commands.TINY.replace("shards: shards", f"shards: {folder / 'shards'}"))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The same on this machine, in two processes."""
    run = tmp_path_factory.mktemp("local") / "run"
    launch({}, "local", tiny, "--processes", 2, "--folds", 1, f"run={run}", *STEPS)
    return run
