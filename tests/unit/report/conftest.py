"""What tests of reports share."""

from typing import IO, Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of a page's words alone: its figures are made, but not laid out and drawn, which takes seconds."""

    def blank(figure: Figure, out: IO[str], **options: Any) -> None:
        out.write("<svg ></svg>")

    monkeypatch.setattr(Figure, "savefig", blank)
