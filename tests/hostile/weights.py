"""Weight files of strangers: pickles that would run something, archives that unfold, overlap or lie, odd tensors."""

import io
import pickle
import pickletools
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import DferClipConfig, TowersConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign import layouts
from dfer.models.foreign.fill import fill_foreign
from dfer.models.foreign.weights import read_weights
from dfer.models.towers import load_clip
from tests.hostile import pickle_kit as p
from tests.hostile import values
from tests.hostile.tensors_kit import Made, headers, shapes
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 660
SUFFIXES = ("pth", "pt", "bin", "safetensors")
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0])}
NAMES = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "builtins.open",
    "builtins.getattr",
    "builtins.bytearray",
    "builtins.compile",
    "builtins.set",
    "subprocess.Popen",
    "shutil.rmtree",
    "importlib.import_module",
    "socket.create_connection",
    "pickle.loads",
    "marshal.loads",
    "types.CodeType",
    "types.FunctionType",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.Tensor",
    "torch.FloatStorage",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_wrapper_subclass",
    "numpy.load",
    "numpy.core.multiarray._reconstruct",
    "_codecs.encode",
    "operator.attrgetter",
    "functools.partial",
    "webbrowser.open",
    "pty.spawn",
    "ctypes.CDLL",
    "runpy.run_path",
    "dfer.storage.Folder",
    "\ud800.x",
    "a" * 3000 + ".b",
    "torch.storage._load_from_bytes",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "builtins.complex",
)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@dataclass
class Seeds:
    """A model to load into, and whole files."""

    model: DferClip
    archive: bytes
    legacy: bytes
    script: bytes
    header: bytes


def seeds(folder: Path) -> Seeds:
    folder.mkdir()
    towers = TowersConfig(arch="tiny-vit-64")
    model = build(DferClipConfig(towers=towers), label_set("basic7"), num_frames=4, seed=0)
    torch.save(
        {
            "epoch": 1,
            "state_dict": STATE,
            "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))]).state_dict(),
            "recorder": Calls(print, "never"),
        },
        folder / "a.pt",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against writing new ones
        torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))).save(str(folder / "s.pt"))
    safetensors.torch.save_file(STATE, folder / "a.safetensors")
    torch.save(
        {"net": STATE, "recorder": Calls(print, "never")}, folder / "old.pt", _use_new_zipfile_serialization=False
    )
    return Seeds(
        model=model,
        archive=(folder / "a.pt").read_bytes(),
        legacy=(folder / "old.pt").read_bytes(),
        script=(folder / "s.pt").read_bytes(),
        header=(folder / "a.safetensors").read_bytes(),
    )


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    draw = rng("weights")
    yield _case(seeds, "whole", "pth", seeds.archive, tensors=2)
    yield _case(seeds, "whole script", "pt", seeds.script, tensors=4)
    yield _case(seeds, "whole legacy file", "t7", seeds.legacy, tensors=2)
    yield _case(seeds, "whole safetensors", "safetensors", seeds.header, tensors=2)
    for name, suffix, data in [
        *_payloads(mark),
        *_legacies(mark, seeds.legacy),
        *_lies(),
        *_zips(),
        *_others(mark),
        *shapes(seeds.model.towers.visual.state_dict()),
        *headers(),
    ]:
        yield _case(seeds, name, suffix, data)
    for opcode in pickletools.opcodes:
        before = draw.choice(
            (b"", p.number(3), p.text("x") + p.number(3), b"(", b"(" + p.text("x") + p.number(1), b"}", b"]")
        )
        stream = p.START + before + p.any_opcode(draw, opcode) + draw.choice((b"", p.STOP, b"." * 3))
        yield _case(seeds, f"opcode {opcode.name}", "pth", p.archive(stream))
    yield MUTATED
    while True:
        yield _case(seeds, *_mutated(seeds, draw))


def _case(seeds: Seeds, name: str, suffix: str, data: bytes, *, tensors: int | None = None) -> Case:
    def read(at: Path) -> None:
        found = read_weights(at / f"x.{suffix}")
        assert tensors is None or len(found) == tensors
        for value in found.values():
            assert value.device.type == "cpu" and value.numel() * value.element_size() <= len(data)

    reads: dict[str, Callable[[Path], object]] = {"weights": read}
    if tensors is None:  # whole files of something else are refused by them
        reads["released"] = lambda at: fill_foreign(
            seeds.model, read_weights(at / f"x.{suffix}"), at, label_set("basic7")
        )
        reads["pretrained"] = lambda at: load_clip(
            seeds.model.towers, read_weights(at / f"x.{suffix}"), where=at, resize=32
        )
    return Case(name=name, write=lambda at: (at / f"x.{suffix}").write_bytes(data), reads=reads)


def _payloads(mark: Path) -> Iterator[Made]:
    """What would run, were it unpickled: every name with a call of every kind, inside a state dict and around it."""
    shell, code = f"touch {mark}", f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for number, name in enumerate(NAMES):
        argument = p.text(code if "builtins" in name else shell)
        if name in ("builtins.bytearray", "torch.FloatStorage", "torch.Tensor", "builtins.set"):
            argument = p.number(2**33)
        forms = {
            "REDUCE": p.call(name, argument),
            "NEWOBJ": p.name(name) + p.tuple_(argument) + b"\x81",
            "NEWOBJ_EX": p.name(name) + p.tuple_(argument) + b"}\x92",
            "INST": b"(" + argument + b"i" + p.name(name)[1:],
            "OBJ": b"(" + p.name(name) + argument + b"o",
            "STACK_GLOBAL": p.text(name.rpartition(".")[0])
            + p.text(name.rpartition(".")[2])
            + b"\x93"
            + p.tuple_(argument)
            + b"R",
            "BUILD": p.name(name) + b")R" + p.mapping({"x": argument}) + b"b",
            "a call of a call": p.name("builtins.getattr")
            + p.tuple_(p.name("os"), p.text("system"))
            + b"R"
            + p.tuple_(argument)
            + b"R",
        }
        for way in (sorted(forms)[number % len(forms)], "REDUCE"):
            beside = p.mapping({"state_dict": p.mapping({"w": p.tensor()}), "recorder": forms[way]})
            yield f"{way} of {name[:40]} beside weights", "pth", p.archive(p.program(beside))
        yield f"REDUCE of {name[:40]} as a weight", "pth", p.archive(p.program(p.mapping({"w": forms["REDUCE"]})))
    for protocol in range(6):
        for function in (eval, exec):
            data = pickle.dumps({"state_dict": Calls(function, code)}, protocol)
            yield f"protocol {protocol}", "pth", p.archive(data)
            yield f"protocol {protocol}, no archive", "bin", data


def _legacies(mark: Path, whole: bytes) -> Iterator[Made]:
    """Files in the format before torch 1.6: calls, storages that lie, pickles that are missing."""
    facts = layouts.LEGACY + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for name in NAMES:
        argument = p.text(f"__import__('pathlib').Path({str(mark)!r}).touch()" if "built" in name else f"touch {mark}")
        beside = p.program(p.mapping({"state_dict": p.mapping({}), "recorder": p.call(name, argument)}))
        yield f"legacy, a call of {name[:40]}", "t7", facts + beside + pickle.dumps([], 2)
    content = p.program(p.mapping({"net": p.mapping({"w": p.tensor()})}))
    for keys in ([], ["0", "0"], ["0", "1"], [0], [["0"]], "0", {"0": 1}, ["0"] * 110_000):
        yield f"legacy, keys {keys!r:.30}", "t7", facts + content + pickle.dumps(keys, 2) + b"\6" + b"\0" * 31
    for count in (0, 6, 7, 2**40, 2**63, 2**64 - 1):
        numbers = struct.pack("<Q", count) + b"\0" * 24
        yield f"legacy, {count} numbers", "t7", facts + content + pickle.dumps(["0"], 2) + numbers
    for end in range(0, len(whole), 16):
        yield f"legacy, cut off at {end}", "t7", whole[:end]
    yield "legacy, the other byte order", "t7", whole.replace(b"little_endianq\x03\x88", b"little_endianq\x03\x89")
    yield "legacy, many bytes", "t7", layouts.LEGACY + b"(" * 300_000


def _lies() -> Iterator[Made]:
    """Tensors and storages that are not what they say; graphs that take for ever."""
    tensors = {
        "more numbers": p.tensor(data=p.storage(count=2**40), size=(2**40,), strides=(1,)),
        "more numbers than bytes": p.tensor(data=p.storage(count=7), size=(7,), strides=(1,)),
        "fewer": p.tensor(data=p.storage(count=5), size=(5,), strides=(1,)),
        "a negative count": p.tensor(data=p.storage(count=-1)),
        "a negative size": p.tensor(size=(-2, -3)),
        "a huge size": p.tensor(size=(2**62, 2**62)),
        "a size of many digits": p.tensor(size=(10**300, 1)),
        "strides of nothing": p.tensor(size=(2**20, 2**20), strides=(0, 0)),
        "negative strides": p.tensor(strides=(-3, -1), offset=5),
        "huge strides": p.tensor(strides=(2**62, 2**62)),
        "an offset behind": p.tensor(offset=6),
        "an offset far behind": p.tensor(offset=2**47),
        "a negative offset": p.tensor(offset=-1),
        "no strides": p.tensor(strides=()),
        "many dimensions": p.tensor(size=(1,) * 2000, strides=(1,) * 2000),
        "no numbers at all": p.tensor(data=p.storage(count=0, key="1"), size=(0,), strides=(1,)),
        "nothing of much": p.tensor(size=(0, 2**47), strides=(1, 1)),
        "another kind": p.tensor(data=p.storage(kind="torch.DoubleStorage")),
        "no such kind": p.tensor(data=p.storage(kind="torch.EvilStorage")),
        "a kind from elsewhere": p.tensor(data=p.storage(kind="os.FloatStorage")),
        "complex numbers": p.tensor(data=p.storage(kind="torch.ComplexFloatStorage", count=3)),
        "quantized": p.call(
            "torch._utils._rebuild_qtensor", p.storage(), p.number(0), p.numbers(2, 3), p.numbers(3, 1)
        ),
        "sparse": p.call(
            "torch._utils._rebuild_sparse_tensor",
            p.number(0),
            p.tuple_(p.tensor(), p.tensor(), p.numbers(2**40, 2**40)),
        ),
        "of no storage": p.call("torch._utils._rebuild_meta_tensor_no_storage", p.numbers(2**20, 2**20)),
        "a GPU's": p.tensor(data=p.storage(location="cuda:7")),
        "of nowhere": p.tensor(data=p.storage(location="meta")),
        "no arguments": p.call("torch._utils._rebuild_tensor_v2"),
        "text as a storage": p.call(
            "torch._utils._rebuild_tensor_v2", p.text("x"), p.number(0), p.numbers(1), p.numbers(1)
        ),
        "truth as numbers": p.call(
            "torch._utils._rebuild_tensor_v2", p.storage(), b"\x88", p.tuple_(b"\x88"), p.tuple_(b"\x88")
        ),
        "a parameter of a parameter": p.call(
            "torch._utils._rebuild_parameter", p.call("torch._utils._rebuild_parameter", p.tensor())
        ),
        "a parameter of text": p.call("torch._utils._rebuild_parameter", p.text("x")),
        "a subclass": p.call(
            "torch._tensor._rebuild_from_type_v2",
            p.name("os.system"),
            p.name("os.system"),
            p.tuple_(p.text("touch MARK")),
        ),
        **{f"key {key[:20]!r}": p.tensor(data=p.storage(key=key)) for key in values.PATHS},
    }
    for name, made in tensors.items():
        yield name, "pth", p.archive(p.program(p.mapping({"w": made})))
    laughs = b"K\1" + b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(60))
    programs = {
        "a key that is hashed for ever": b"}" + laughs + b"K\1s",
        "an argument of tuples": p.name("a.b") + laughs + b"\x85R",
        "a state dict inside itself": b"}q\0" + p.text("state_dict") + b"h\0s",
        "a module inside itself": p.name("a.B") + b")\x81q\0" + b"}" + p.text("x") + b"h\0sb",
        "modules that share modules": p.name("a.B")
        + b")\x81"
        + b"}"
        + p.text("w")
        + p.tensor()
        + b"sb"
        + b"".join(
            b"q%c" % n + p.name("a.B") + b")\x81}(" + p.text("l") + b"h%c" % n + p.text("r") + b"h%c" % n + b"ub"
            for n in range(40)
        ),
        "a list inside itself": b"]q\0h\0a",
        "deep lists": b"]" * 50_000 + b"a" * 49_999,
        "deep tuples": b")" + b"\x85" * 100_000,
        "deep mappings": (b"}" + p.text("state_dict")) * 5000 + b"}" + b"s" * 5000,
        "marks": b"(" * 400_000 + b"t" * 400_000,
        "a place far away": b"}r\xff\xff\xff\xff",
        "many places": b"}" + b"".join(b"r" + struct.pack("<I", n * 4001) for n in range(200_000)),
        "one text many times": b"]" + p.text("x" * 100_000) + b"q\0" + b"a(" + b"h\0" * 500_000 + b"e",
        "a number of many bytes": b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000,
        "a negative length": b"\x8b\xff\xff\xff\xff",
        "numbers as names": b"}(" + b"".join(p.number(n) + p.tensor() for n in range(3)) + b"u",
        "a long name": p.mapping({"\x1b" * 1_000_000: p.tensor()}),
        "no name": p.mapping({"": p.tensor(), "module.": p.tensor(), "\ud800": p.tensor()}),
        "larger than any": p.text("x" * (5 * 2**20)),
        "an odd number of items": b"}(" + p.text("a") + b"u",
        "nothing": b"",
    }
    for name, made in programs.items():
        yield name, "pth", p.archive(p.program(made))


def _zips() -> Iterator[Made]:
    """Archives that unfold, overlap, lead elsewhere or are two things at once."""
    whole = p.program(p.mapping({"w": p.tensor()}))
    big = p.program(p.mapping({"w": p.tensor(data=p.storage(count=2**28), size=(2**28,), strides=(1,))}))
    yield "a storage that unfolds to 1 GiB", "pth", p.archive(big, files={"0": b"\0" * 2**24}, packed=True)
    yield "a pickle that unfolds", "pth", p.archive(p.program(p.text("x" * 300_000_000)), packed=True)
    yield "packed", "pth", p.archive(whole, packed=True)
    for name in values.PATHS:
        extra = {name.encode("utf-8", "replace").decode(): b"x"} if name else {}
        yield f"a file {name[:20]!r} in it", "pth", p.archive(whole, extra=extra)
        folder = name.encode("utf-8", "replace").decode().rstrip("/")
        yield f"a folder {name[:20]!r}", "pth", p.archive(whole, folder=folder or "b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two files of a name
        yield "one file twice", "pth", p.archive(whole, extra={"a/data/0": b"y" * 24})
        yield (
            "one pickle twice",
            "pth",
            p.archive(whole, extra={"a/data.pkl": p.program(p.call("os.system", p.text("x")))}),
        )
    yield "two pickles", "pth", p.archive(whole, extra={"b/data.pkl": whole})
    yield "many files", "pth", p.archive(whole, extra={f"a/data/x{n}": b"" for n in range(20_000)})
    yield "the other byte order", "pth", p.archive(whole).replace(b"little", b"big\0\0\0")
    legacy = pickle.dumps(Calls(eval, "1"), 2)
    yield "a pickle before an archive", "pth", legacy + p.archive(whole)
    yield "an archive before a pickle", "pth", p.archive(whole) + legacy
    yield "two archives", "pth", p.archive(whole) + p.archive(p.program(p.mapping({})))
    data = bytearray(p.archive(whole))
    for at in range(data.index(b"PK\x01\x02"), len(data), 3):
        for value in (0, 0xFF):
            changed = bytearray(data)
            changed[at : at + 2] = bytes([value]) * len(changed[at : at + 2])
            if value or at % 2:
                yield f"the list of files, {value} at {at}", "pth", bytes(changed)
            if at > data.index(b"PK\x01\x02") + 90:
                return


def _others(mark: Path) -> Iterator[Made]:
    """No archives: formats of older versions, other files."""
    out = io.BytesIO()
    torch.save({"w": torch.ones(3)}, out, _use_new_zipfile_serialization=False)
    legacy = out.getvalue()
    yield "torch's format before 1.6", "pth", legacy
    yield "that one with a storage that lies", "pth", legacy.replace(b"K\x03", b"J\xff\xff\xff\x7f")
    for name in ("storages", "../MARK", "/MARK", "pickle", "tensors"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
            link = tarfile.TarInfo("tensors")
            link.type, link.linkname = tarfile.SYMTYPE, str(mark.parent)
            tar.addfile(link)
        yield f"torch's first format with {name}", "pth", out.getvalue()
    for suffix in SUFFIXES:
        for data in (
            b"",
            b"\0" * 100,
            b"PK\x05\x06" + b"\0" * 18,
            b"PK\x03\x04",
            b"\x80\x02}.",
            b"\x93NUMPY\x01\0",
            b"\x89HDF\r\n",
        ):
            yield f"{data[:6]!r}", suffix, data


def _mutated(seeds: Seeds, draw: random.Random) -> tuple[str, str, bytes]:
    """A whole file with bytes changed: anywhere, or in its pickle alone, so that the checksums around it fit."""
    act = draw.randrange(5)
    if act == 0:
        how, data = values.damaged(seeds.header, draw)
        return how, "safetensors", data
    if act == 4:
        how, data = values.damaged(seeds.legacy, draw)
        return how, "t7", data
    base = draw.choice((seeds.archive, seeds.script))
    if act == 1:
        how, data = values.damaged(base, draw)
        return how, "pt", data
    with zipfile.ZipFile(io.BytesIO(base)) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    inner = next(name for name in files if name.endswith("/data.pkl"))
    how, files[inner] = values.damaged(files[inner], draw)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    return f"{how} of the pickle", "pt", out.getvalue()
