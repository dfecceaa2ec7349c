"""Virtual hosts are what separate computers are: apart, silent when they die, gone with the run that made them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import BedError, run, wait_until
from tests.cluster.hosts import Host, Network
from tests.processes import alive

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
ABANDON = """
import time
from tests.cluster.hosts import Network
network = Network()
host = network.add("lonely")
print(network.number, network.folder, host.enter()[2], flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    with Network() as network:
        yield network.add("left"), network.add("right")


def connect(host: Host, target: str, seconds: int = 1) -> str:
    """What happens on connecting to a port where nobody listens: "refused" where there is a way, else "silence"."""
    script = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=int(sys.argv[2]))"
    got = host.run([sys.executable, "-S", "-c", script, target, str(seconds)], check=False)
    return "refused" if "ConnectionRefusedError" in got.stderr else "silence"


def test_hosts_are_apart(pair: tuple[Host, Host]) -> None:
    left, right = pair
    assert [host.run(["hostname"]).stdout for host in pair] == ["left\n", "right\n"]
    left.run(["sh", "-c", "echo left > /dev/shm/x; echo left > /var/tmp/x"])
    assert right.run(["ls", "/dev/shm", "/var/tmp"]).stdout == "/dev/shm:\n\n/var/tmp:\n"
    assert len(left.run(["ps", "-e", "--no-headers"]).stdout.splitlines()) <= 3
    assert left.address in left.run(["ip", "-4", "addr"]).stdout
    assert "default" not in left.run(["ip", "route"]).stdout


def test_hosts_meet_by_name_and_see_the_tests(pair: tuple[Host, Host]) -> None:
    left, right = pair
    assert [connect(left, "right"), connect(right, "left"), connect(left, left.network.gateway)] == ["refused"] * 3


def test_a_black_hole_swallows_and_ends(pair: tuple[Host, Host]) -> None:
    left, right = pair
    right.black_hole()
    assert [connect(left, "right"), connect(right, "left")] == ["silence"] * 2
    right.reconnect()
    assert connect(left, "right", seconds=5) == "refused"


def test_power_loss_is_silent_and_keeps_the_disk(pair: tuple[Host, Host]) -> None:
    left, right = pair
    listen = "import socket, time; s = socket.create_server(('', 7000)); kept = s.accept(); time.sleep(60)"
    right.start([sys.executable, "-S", "-c", listen], "listener")
    wait_until(lambda: "7000" in right.run(["ss", "-Hltn"]).stdout, 10, "the listener")
    read = "import socket; s = socket.create_connection(('right', 7000), 2); print('in', flush=True); s.recv(1)"
    with subprocess.Popen([*left.enter(), sys.executable, "-S", "-c", read], text=True, stdout=-1, stderr=-1) as reader:
        assert reader.stdout and reader.stdout.readline() == "in\n"
        right.run(["touch", "/var/tmp/kept"])
        right.power_off()
        assert "TimeoutError" in reader.communicate(timeout=20)[1]
    with pytest.raises(BedError, match="right is switched off"):
        right.run(["true"])
    right.power_on()
    assert right.run(["ls", "/var/tmp"]).stdout == "kept\n"
    assert connect(left, "right") == "refused"


def test_a_dead_end_is_up_and_leads_nowhere(pair: tuple[Host, Host]) -> None:
    left, right = pair
    address = left.add_dead_end("eth1")
    right.add_dead_end("eth1")
    assert address in left.run(["ip", "-4", "addr", "show", "up", "dev", "eth1"]).stdout
    assert connect(right, address) == "silence"


def test_a_host_may_call_itself_by_a_useless_address(pair: tuple[Host, Host]) -> None:
    left, right = pair
    left.call_itself("127.0.1.1")
    assert left.run(["getent", "hosts", "left"]).stdout.startswith("127.0.1.1")
    assert right.run(["getent", "hosts", "left"]).stdout.startswith(left.address)
    left.call_itself()
    assert left.run(["getent", "hosts", "left"]).stdout.startswith(left.address)


def test_a_command_ends_at_its_bound(pair: tuple[Host, Host]) -> None:
    began = time.monotonic()
    with pytest.raises(BedError, match=r"not done after 0.5 s: .* sleep 300"):
        pair[0].run(["sleep", "300"], timeout=0.5)
    assert time.monotonic() - began < 10
    assert "300" not in pair[0].run(["ps", "-e", "-o", "args"]).stdout
    with pytest.raises(BedError, match=r"exit code 3: .*\n.*why"):
        pair[0].run(["sh", "-c", "echo why >&2; exit 3"])


def test_a_killed_run_leaves_no_process_and_the_next_one_cleans_up() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", ABANDON], env=environment, text=True, stdout=-1) as abandoned:
        assert abandoned.stdout
        number, folder, init = abandoned.stdout.readline().split()
        abandoned.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(int(init)), 5, "the host to die with its run")
    assert Path(folder).exists()
    with Network() as network:
        assert network.number == int(number)
        assert not Path(folder).exists()
        assert network.add("lonely").run(["hostname"]).stdout == "lonely\n"
    assert f"dfer{number}" not in run(["ip", "link"]).stdout
