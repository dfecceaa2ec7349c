"""The files of a fitted projection head: safetensors, the layout of Exp-CLIP's released heads, and a card."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from dfer.models.card import LICENCE
from dfer.models.saving import write_tensors
from dfer.storage import Folder

FILE, RELEASED, CARD = "head.safetensors", "ExpCLIP_head.pth", "README.md"
WEIGHT = "mlp.weight"


def write_head(home: Folder, weight: Tensor, *, facts: Mapping[str, str]) -> None:
    """Write a head, fp32 [D S], in all its forms. facts: what the card says, by heading. Raises StorageError."""
    import tempfile
    from pathlib import Path

    tensors = {WEIGHT: weight.contiguous()}
    with tempfile.TemporaryDirectory(prefix="dfer-") as staged:
        write_tensors(tensors, Path(staged) / FILE)
        torch.save(tensors, Path(staged) / RELEASED)
        for name in (FILE, RELEASED):
            home.write(name, (Path(staged) / name).read_bytes())
    home.write(CARD, _card(weight, facts).encode())


def _card(weight: Tensor, facts: Mapping[str, str]) -> str:
    front = "---\nlicense: other\nlicense_name: see-card\ntags: [clip, projection-head]\n---\n\n"
    title = f"# Projection head, {weight.shape[1]} to {weight.shape[0]}\n\n"
    body = (
        f"A linear map without bias from features of CLIP's image and text tower to the space of a teacher (Exp-CLIP, "
        f"Zhao et al., WACV 2025). `{FILE}` and `{RELEASED}` hold the same tensor, `{WEIGHT}`.\n\n"
    )
    lines = "".join(f"- {name}: {_plain(text)}\n" for name, text in facts.items())
    use = f"Use: `dfer crossval methods/zero_shot sets/SET model.head=HEAD/{FILE}`"
    return f"{front}{title}{body}{lines}\n{use}\n\n{LICENCE}\n"


def _plain(text: str) -> str:
    """A text without markup of its own."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("<", "&lt;").replace("`", "'")
