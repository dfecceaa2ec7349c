"""Ray over virtual hosts does what a user's cluster does: tasks on every host, jobs, hosts that die and join."""

import json
import sys
from pathlib import Path

import pytest

from tests.cluster.commands import wait_until
from tests.cluster.ray_bed import RayBed

pytestmark = pytest.mark.cluster
long = pytest.mark.cluster(long=True)

# One task on each host, by its address; prints {address: host name}.
EVERYWHERE = """
import json, socket, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def name():
    return socket.gethostname()

found = {key: ray.get(name.options(resources={key: 0.01}).remote()) for key in ray.cluster_resources()
         if key.startswith("node:10.")}
print(json.dumps(found))
"""
# A task that a killed process interrupts and Ray repeats; prints how often it was begun.
REPEATED = """
import os, sys, time, ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=3)
def count(path):
    with open(path, "a") as out:
        print(os.getpid(), file=out)
    time.sleep(3)
    return len(open(path).read().splitlines())

print(ray.get(count.options(resources={"node:" + sys.argv[2]: 0.01}).remote(sys.argv[1])))
"""


def test_a_task_runs_on_each_host(ray: RayBed) -> None:
    out = ray.run_on("worker1", [sys.executable, "-c", EVERYWHERE], timeout=60).stdout
    assert json.loads(out.splitlines()[-1]) == {f"node:{host.address}": name for name, host in ray.hosts.items()}


@long
def test_a_job_is_submitted_from_outside(ray: RayBed) -> None:
    out = ray.ray("job", "submit", "--", "sh", "-c", "echo job on $(hostname)", timeout=90)
    assert "job on head" in out
    assert "succeeded" in out


@long
def test_a_killed_worker_process_is_replaced(ray: RayBed, tmp_path: Path) -> None:
    path, host = tmp_path / "begun", ray.hosts["worker2"]
    driver = [sys.executable, "-c", REPEATED, str(path), host.address]
    host.start(driver, "repeated", env=ray.env() | {"RAY_ADDRESS": ray.address})
    wait_until(path.exists, 60, "the task to begin")
    assert ray.kill_worker("worker2", "^ray::count") == 1
    log = ray.network.logs / "repeated"
    wait_until(lambda: log.read_text().splitlines()[-1:] == ["2"], 60, "the task to be repeated")


@long
def test_a_host_without_power_is_noticed_and_may_come_back(ray: RayBed) -> None:
    ray.power_off("worker2")
    ray.wait_alive(["head", "worker1"], timeout=30)
    assert ray.states() == {"head": "ALIVE", "worker1": "ALIVE", "worker2": "DEAD"}
    ray.power_on("worker2")
    ray.wait_alive(["head", "worker1", "worker2"])


@long
def test_an_unreachable_host_is_noticed(ray: RayBed) -> None:
    ray.black_hole("worker1")
    ray.wait_alive(["head", "worker2"], timeout=30)


@long
def test_the_head_without_power_takes_everything_with_it_until_a_reset(ray: RayBed) -> None:
    ray.power_off("head")
    with pytest.raises(OSError):
        ray.states()
    ray.reset()
    assert ray.states() == {"head": "ALIVE", "worker1": "ALIVE", "worker2": "ALIVE"}


@long
def test_a_host_joins_and_is_gone_after_a_reset(ray: RayBed) -> None:
    assert ray.add_host() == "worker3"
    assert ray.states()["worker3"] == "ALIVE"
    ray.reset()
    assert ray.states()["worker3"] == "DEAD"
