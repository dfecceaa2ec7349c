"""Byte ranges of S3 objects through botocore's own client.

s3fs reads through an event loop, at nearly twice the CPU time a byte, which the interpreter's lock takes from the
thread that decodes. Credentials and endpoint come from where s3fs finds them: environment, profile or instance.
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
"""Bytes taken from the connection at once: larger ones take the interpreter's lock less often, smaller ones let the
clock be looked at."""


class S3Parts:
    """A client that tries everything once. Threads may share it; processes may not."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s, self._lock = timeout_s, threading.Lock()
        self._client: Any = None

    def get(self, path: str, start: int, into: memoryview) -> int:
        """Fill `into` with the bytes of `bucket/key` from `start` on; gives how many came.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
            FileNotFoundError, PermissionError, OSError: what the store answers.
            Exception: what botocore raises about the connection.
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
