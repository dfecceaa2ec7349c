"""Fixtures that unit tests of several rooms share."""

from pathlib import Path
from typing import IO, Any

import pytest
import s3fs


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which S3's client finds no keys; nothing goes over the network."""
    s3fs.S3FileSystem.clear_instance_cache()  # other tests of this process had a server and its keys
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of a report's words alone: its figures are made, but not laid out and drawn, which takes seconds."""

    def blank(figure: object, out: IO[str], **options: Any) -> None:
        out.write("<svg ></svg>")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)
