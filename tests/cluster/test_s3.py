"""Virtual hosts share an object store: what one writes another reads, and the credentials come from the environment."""

import sys

import pytest

from tests.cluster.hosts import Network
from tests.servers import S3

pytestmark = pytest.mark.cluster

COPY = """
import sys, fsspec
files = fsspec.filesystem('s3')
if sys.argv[1] == 'write':
    files.pipe_file('data/folder/x', bytes(range(256)) * 1000)
else:
    assert files.cat_file('data/folder/x', start=256, end=512) == bytes(range(256))
    print(files.ls('data/folder', detail=False))
"""


def test_what_one_host_writes_another_reads(network: Network, s3: S3) -> None:
    left, right = (network.hosts.get(name) or network.add(name) for name in ("writer", "reader"))
    # rclone answers a ranged read with the checksum of the whole file.
    environment = {**s3.environment, "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
    left.run([sys.executable, "-c", COPY, "write"], env=environment)
    assert right.run([sys.executable, "-c", COPY, "read"], env=environment).stdout == "['data/folder/x']\n"
    assert (s3.files / "folder/x").stat().st_size == 256_000
