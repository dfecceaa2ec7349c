"""Tensors by name that are not those of a model, and safetensors files that are none."""

import io
import struct
from collections.abc import Iterator, Mapping

import safetensors.torch
import torch

from tests.hostile import pickle_kit as p

Made = tuple[str, str, bytes]
"""What a file is, the end of its name, its bytes."""


def shapes(clip: Mapping[str, torch.Tensor]) -> Iterator[Made]:
    """The names of a released checkpoint or of a CLIP with tensors of other shapes."""
    released = {
        name: torch.ones(2, 2)
        for name in (
            "prompt_learner.ctx",
            "prompt_learner.token_prefix",
            "prompt_learner.token_suffix",
            "temporal_net.pos_embedding",
        )
    }
    for name in released:
        for shape in ((), (0,), (5,), (1, 17, 512), (7, 8, 512), (0, 0, 0), (1, 1, 1, 1)):
            yield f"{name} of {shape}", "pth", _saved({**released, name: torch.ones(shape)})
    for layer in ("9" * 5000, "0" * 30, "\u0663", "-1"):
        extra = {f"temporal_net.temporal_transformer.layers.{layer}.0.fn.norm.weight": torch.ones(2)}
        yield f"layer {layer[:20]}", "pth", _saved({**released, **extra})
    yield "tensors of no numbers", "pth", _saved({**released, "temporal_net.cls_token": torch.ones(0)})
    for shape in ((), (3,), (65,), (65, 3), (6, 3, 3), (0, 0), (7, 64), (64, 64), (70, 64)):
        weights = {
            "visual.positional_embedding": torch.ones(shape),
            "positional_embedding": torch.ones(shape),
            **{f"visual.{name}": value[:1] for name, value in list(clip.items())[:2]},
        }
        yield f"positions of {shape}", "pth", _saved(weights)
    yield "not finite", "pth", _saved({"visual.positional_embedding": torch.full((65, 64), float("nan"))})
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn):
        yield (
            f"{dtype}",
            "safetensors",
            safetensors.torch.save({"visual.positional_embedding": torch.ones(65, 64).to(dtype)}),
        )
        yield f"{dtype}", "pt", _saved({"visual.positional_embedding": torch.ones(65, 64).to(dtype)})


def _saved(weights: dict[str, torch.Tensor]) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": weights}, out)
    return out.getvalue()


def headers() -> Iterator[Made]:
    """safetensors."""
    entry = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
    texts = {
        "no such kind": entry.replace("F32", "F31"),
        "another kind": entry.replace("F32", "F64"),
        "huge shape": entry.replace("[2,3]", "[9223372036854775807,9223372036854775807]"),
        "negative shape": entry.replace("[2,3]", "[-2,-3]"),
        "long shape": entry.replace("[2,3]", f"[{'1,' * 5000}6]"),
        "nothing of much": entry.replace("[2,3]", "[0,9223372036854775807]").replace("24]", "0]"),
        "backwards": entry.replace("[0,24]", "[24,0]"),
        "behind": entry.replace("[0,24]", "[24,48]"),
        "huge places": entry.replace("[0,24]", "[18446744073709551615,18446744073709551615]"),
        "deep": "[" * 100_000,
        "null": "null",
        "a list": "[]",
        "text as shape": entry.replace("[2,3]", '"x"'),
        "keys twice": entry.replace("{", '{"dtype":"F32",'),
        "more": entry.replace("{", '{"x":[[[1]]],'),
    }
    for name, text in texts.items():
        yield name, "safetensors", _header(f'{{"w":{text}}}')
    wholes = {
        "two that overlap": f'{{"w":{entry},"v":{entry}}}',
        "no tensors": "{}",
        "null": "null",
        "nothing": "",
        "text about it": f'{{"__metadata__":{{"a":"{"x" * 100_000}"}},"w":{entry}}}',
        "numbers about it": f'{{"__metadata__":{{"a":1}},"w":{entry}}}',
        "a strange name": f'{{"\\u001b[2J\\u0000":{entry}}}',
        "a lone surrogate": f'{{"\\ud800":{entry}}}',
        "one name twice": f'{{"w":{entry},"w":{entry}}}',
        "deep": '{"w":' * 50_000,
        "many": "{" + ",".join(f'"w{n}":{entry}' for n in range(50_000)) + "}",
    }
    for name, text in wholes.items():
        yield name, "safetensors", _header(text)
    for length in (0, 1, 2**24 + 1, 2**31, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", "safetensors", struct.pack("<Q", length) + b'{"w":{}}' + b"\0" * 24
    yield "a large header", "safetensors", _header("{" + " " * 50_000_000 + "}")


def _header(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data + p.NUMBERS
