"""The benchmark of `extract` runs on the first GPU if there is one."""

from pathlib import Path

import pytest
import torch

from dfer.bench import extract


class BuiltError(Exception):
    """Both models would be built now."""


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_both_models_are_on_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, kind: str) -> None:
    found: list[torch.device] = []

    def pairs(_: object, device: torch.device) -> None:
        found.append(device)
        raise BuiltError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(extract, "Pairs", pairs)
    monkeypatch.setattr(extract, "write_teacher", lambda folder: Path(folder))
    with pytest.raises(BuiltError):
        extract.bench_extract(batch=1, batches=2, rounds=1)
    assert [device.type for device in found] == [kind]
