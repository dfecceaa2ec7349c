"""torch's archives read as data: what torch writes comes back, lies are refused before they cost anything."""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from dfer.models.foreign.archive import Archive, Machine
from dfer.models.foreign.tensors import Call, NotAnArchive
from tests.hostile import pickle_kit as p


def opened(tmp_path: Path, data: bytes) -> Archive:
    (tmp_path / "x.pt").write_bytes(data)
    return Archive(tmp_path / "x.pt")


def made(tmp_path: Path, tensor: bytes, **more: Any) -> torch.Tensor | None:
    """The tensor that a program of one describes."""
    with opened(tmp_path, p.archive(p.program(tensor), **more)) as archive:
        return archive.tensor(archive.content)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(24.0).reshape(2, 3, 4),
        torch.arange(24).reshape(4, 6).t()[1:, ::2],
        torch.tensor(3.5),
        torch.ones(0, 3),
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.uint8),
    ],
)
def test_tensors_of_every_kind_come_back(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"plain": value, "parameter": torch.nn.Parameter(value.float())}, tmp_path / "x.pt")
    with Archive(tmp_path / "x.pt") as archive:
        plain, parameter = (archive.tensor(archive.content[name]) for name in ("plain", "parameter"))
    assert plain is not None and plain.dtype == value.dtype and torch.equal(plain, value)
    assert parameter is not None and torch.equal(parameter, value.float())


def test_tensors_that_share_numbers_still_do(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save([whole[:3], whole[3:]], tmp_path / "x.pt")
    with Archive(tmp_path / "x.pt") as archive:
        first, second = (archive.tensor(value) for value in archive.content)
    assert first is not None and second is not None
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() and torch.equal(second, whole[3:])


def test_containers_come_back_and_calls_are_notes(tmp_path: Path) -> None:
    content = {"a": [1, -2, 2**40, 0.5, None, True], "b": ("x", (), ((1,), 2)), "c": OrderedDict(d={}), 3: "y"}
    torch.save({**content, "call": Path("x")}, tmp_path / "x.pt")
    with Archive(tmp_path / "x.pt") as archive:
        call = archive.content.pop("call")
        assert archive.content == content
        assert isinstance(call, Call) and call.name.startswith("pathlib.") and call.arguments == ("x",)
        assert archive.tensor(call) is None and archive.tensor("x") is None


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (p.tensor(data=p.storage(count=2**40), size=(2**40,), strides=(1,)), "24 bytes for 1099511627776 numbers of"),
        (p.tensor(data=p.storage(count=5), size=(5,), strides=(1,)), "no 'data/0' of at most 20 bytes in it"),
        (p.tensor(size=(2**20, 2**20), strides=(0, 0)), "a tensor of 1048576 x 1048576 numbers in a storage of 6"),
        (p.tensor(offset=1), "in a storage of 6"),
        (p.tensor(size=(-1, 3)), "a tensor of something else than a storage and whole numbers"),
        (p.tensor(strides=(1,)), "a tensor of 2 dimensions with 1 strides"),
        (p.tensor(data=p.storage(key="../x")), r"no 'data/\.\./x' of at most 24 bytes in it"),
        (p.tensor(data=p.storage(kind="torch.EvilStorage")), "numbers of the kind 'EvilStorage'"),
        (p.call("torch._utils._rebuild_tensor_v2"), "a tensor without size or strides"),
        (p.storage(count=-1), "something kept aside that is no storage"),
        (p.text("x") + b"Q", "something kept aside that is no storage"),
        (p.text("x") + b")R", "a call of something that is no name"),
        (b"0", "pickle's opcode POP"),
        (b"\x8cax\x93", r"expected 97 bytes|opcode SHORT_BINUNICODE"),
        (b"h\x05", "a pickle that takes what it has not made"),
        (b"t", "a pickle that takes what it has not made"),
        (b"(\x85", "a pickle that takes what it has not made"),
    ],
)
def test_what_is_refused(tmp_path: Path, tensor: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        made(tmp_path, tensor)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (p.archive(p.program(p.tensor()), packed=True), "is packed or encrypted"),
        (p.archive(p.program(p.tensor()), extra={"b/data.pkl": b""}), r"2 files data\.pkl in it"),
        (p.archive(p.program(p.tensor())).replace(b"little", b"big\0\0\0"), "Bad CRC|the other byte order"),
        (p.archive(p.START), "a pickle without an end|pickle exhausted"),
        (p.archive(p.program(p.text("x" * 3_000_000))), r"no 'data\.pkl' of at most 2097152 bytes in it"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises((ValueError, zipfile.BadZipFile), match=says), opened(tmp_path, data):
        pass


def test_files_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many names for the same bytes: a small file that would be large in memory."""
    data = bytearray(p.archive(p.program(p.mapping({})), files={f"{n}": b"x" * 400 for n in range(4)}))
    first = data.index(b"PK\x01\x02")
    places = [at for at in range(first, len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    for at in places[2:]:
        data[at + 20 : at + 28] = (1800).to_bytes(4, "little") * 2
    with pytest.raises(NotAnArchive, match="files in it that overlap"):
        opened(tmp_path, bytes(data))


def test_keys_are_never_hashed_for_ever() -> None:
    doubled = b"K\1" + b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(60))
    assert Machine().run(p.program(b"}" + doubled + b"K\1s")) == {}


def test_a_pickle_may_hold_itself() -> None:
    found = Machine().run(p.program(b"]q\0h\0a"))
    assert found[0] is found
