"""Read byte ranges of S3 objects with botocore's client.

s3fs reads through an event loop, which needs nearly twice the CPU time per byte; because of the interpreter lock that
slows down the decoding thread. Credentials and endpoint are found as by s3fs: environment, profile or instance.
"""

import threading
import time
from contextlib import closing
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from dfer.storage import s3_config

PIECE = 2**20
"""Bytes read from the connection at a time: larger pieces take the interpreter lock less often, smaller ones allow the
deadline to be checked more often."""


class S3Ranges:
    """A client that does not retry. Threads may share it; processes may not."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s, self._lock = timeout_s, threading.Lock()
        self._client: Any = None

    def get(self, path: str, start: int, into: memoryview) -> int:
        """Fill `into` with the bytes of `bucket/key` from `start` on; returns the number of bytes received.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
            FileNotFoundError, PermissionError, OSError: errors that the store returns.
            Exception: botocore's errors of the connection.
        """
        bucket, _, key = path.partition("/")
        deadline, at = time.monotonic() + self._timeout_s, 0
        try:
            wanted = f"bytes={start}-{start + len(into) - 1}"
            answer = self._connected().get_object(Bucket=bucket, Key=key, Range=wanted)
        except ClientError as error:
            raise translate_boto_error(error) from error
        with closing(answer["Body"]) as body:
            while at < len(into) and (piece := body.read(min(PIECE, len(into) - at))):
                into[at : at + len(piece)] = piece
                at += len(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError
        return at

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                plain = s3_config(tries_once=True)
                config = Config(**{**plain, "read_timeout": min(plain["read_timeout"], self._timeout_s)})
                self._client = botocore.session.get_session().create_client("s3", config=config)
            return self._client
