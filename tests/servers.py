"""Real object-storage servers on loopback, each a process of its own that ends with its block."""

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import IO

import fsspec
import pytest

BIN = Path(sys.executable).parent
ACCESS, SECRET = "TESTKEY", "TESTSECRET"


@dataclass(frozen=True)
class S3:
    """A running server. Its bucket is there; clients find the server through `environment`.

    folder: where it keeps its buckets as folders of real files; none where it keeps them in memory.
    """

    endpoint: str
    bucket: str = "data"
    folder: Path | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def files(self) -> Path:
        """The bucket's objects, to look at and to damage."""
        assert self.folder is not None
        return self.folder / self.bucket

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets, and nothing of the machine's own profile."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


def use(server: S3, patch: pytest.MonkeyPatch) -> None:
    """Let clients of this process, and of worker processes started from now on, find the server."""
    for name, value in server.environment.items():
        patch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    # The fork server keeps the environment of its start. It ends by itself with the last worker that came from it.
    old = forkserver._forkserver
    if old._forkserver_pid is not None and not _began_with(old._forkserver_pid, server.environment):
        os.close(old._forkserver_alive_fd)
        old._forkserver_address = old._forkserver_alive_fd = old._forkserver_pid = None


def _began_with(pid: int, environment: dict[str, str]) -> bool:
    """Whether a process was started with these variables."""
    try:
        found = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:  # it is gone
        return False
    return {f"{name}={value}".encode() for name, value in environment.items()} <= found


# Below the ports that launchers choose from and that systems give out themselves: nothing else takes one between its
# choice and its use.
_ports = itertools.cycle(range(10_000, 10_500))


def free_port() -> int:
    """A port, free on all addresses of this machine, out of 500 that only this test process uses."""
    own = 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in itertools.islice(_ports, 500):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", own + port))
            except OSError:
                continue
            return own + port
    raise RuntimeError("no free port")


@contextmanager
def rclone(
    folder: Path,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    keys: tuple[str, str] = (ACCESS, SECRET),
    remembers: str = "1s",
) -> Iterator[S3]:
    """S3 over a folder of real files: quick enough for load, and its files can be looked at and damaged.

    remembers: how long the server trusts what it saw of the folder; with 0s it sees at once what a test changes there.
    """
    port = port or free_port()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # The default ETag hash and read chunks make ranged reads 10 to 30 times slower; a directory cache of 0 s makes
    # writes take seconds.
    words = [
        BIN / "rclone",
        "serve",
        "s3",
        "--config",
        "/dev/null",
        "--addr",
        f"{address}:{port}",
        "--auth-key",
        ",".join(keys),
        "--force-path-style",
        "--vfs-cache-mode",
        "off",
        "--vfs-read-chunk-size",
        "0",
        "--dir-cache-time",
        remembers,
        "--no-checksum",
        "--etag-hash",
        "",
        folder,
    ]
    with _running([str(word) for word in words], address, port):
        yield S3(f"http://{address}:{port}", folder=folder)


@contextmanager
def moto() -> Iterator[S3]:
    """S3 in memory, close to Amazon's in its answers and errors; slow at ranged reads."""
    port = free_port()
    words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(words, "127.0.0.1", port):
        server = S3(f"http://127.0.0.1:{port}")
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=server.bucket)
        yield server


@contextmanager
def _running(words: list[str], address: str, port: int) -> Iterator[None]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    # Into a file: a pipe that nobody reads would stop the server once it is full.
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(words, env=own, stdout=subprocess.DEVNULL, stderr=told)
        try:
            _wait_for(process, told, address, port)
            yield
        finally:
            process.kill()
            process.wait()


def _wait_for(
    process: "subprocess.Popen[bytes]", told: IO[bytes], address: str, port: int, timeout: float = 60
) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            told.seek(0)
            raise RuntimeError(f"the server ended with {process.returncode}: {told.read().decode()[-2000:]}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the server does not answer")
