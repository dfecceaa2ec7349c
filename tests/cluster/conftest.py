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
from tests.cluster.launched import STEPS, Undisturbed, launch
from tests.cluster.ray_bed import RayBed
from tests.cluster.slurm import SlurmBed
from tests.integration import commands
from tests.servers import S3, rclone

# What install.sh installs, as far as the beds call it.
PROGRAMS = [
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "srun",
    "munged",
    "mariadbd",
    "bridge",
    "nft",
    "unshare",
    "setpriv",
    "pkill",
]

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
    asked = "cluster" in config.getoption("markexpr") or config.getoption("long")
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
def ray_bed(network: Network, s3: S3) -> Iterator[RayBed]:
    with RayBed(network, environment=s3.environment) as bed:
        yield bed


@pytest.fixture
def ray(ray_bed: RayBed) -> RayBed:
    """Ray over three hosts, alive, without jobs: `head`, `worker1`, `worker2`, two cores each; they know the bucket."""
    ray_bed.reset()
    return ray_bed


@pytest.fixture(scope="session")
def s3(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server over real files, `s3.files`, that all virtual hosts reach."""
    with rclone(tmp_path_factory.mktemp("s3"), address=network.gateway) as server:
        yield server


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 clips of generated faces on the disk."""
    return commands.make_shards(tmp_path_factory.mktemp("dfew"), "dfew", clips=35) / "shards"


@pytest.fixture(scope="session")
def tiny(s3: S3, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of the same shards in the bucket."""
    shutil.copytree(shards, s3.files / "shards")
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(commands.TINY.replace("shards: shards", f"shards: {s3.url}/shards"))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny: Path) -> Undisturbed:
    """Runs with the given words that nothing disturbs, on this machine and its disk, in two processes."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*words: str) -> Path:
        if words not in made:
            folder = tmp_path_factory.mktemp("local") / "run"
            here = (f"run={folder}", f"data.shards={shards}", *STEPS, *words)
            launch({}, "local", tiny, "--processes", 2, "--only", "fold_1", *here)
            made[words] = folder
        return made[words]

    return run
