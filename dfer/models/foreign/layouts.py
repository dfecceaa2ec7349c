"""Recognise the layout of a file, a folder or a set of names, for messages: what it is, and what to give instead."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

HEAD_BYTES = 512
ZIP, PICKLE = b"PK\x03\x04", re.compile(rb"\x80[\x02-\x05]")
LFS = b"version https://git-lfs"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
CONVERT = "python -c \"import torch; torch.save(torch.load('FILE', 'cpu', weights_only=True), 'new.pt')\""
"""Command that rewrites a file of torch before 1.6; with `weights_only`, torch builds only tensors and containers."""
_AGAIN = "Download the file itself."
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF", "a Keras or TensorFlow file (HDF5)", "Give the same model's weights for PyTorch."),
    (b"GGUF", "a GGUF file", "Give the same model's weights for PyTorch."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it and give the file of weights in it."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it and give the file of weights in it."),
    (b"<?xml", "an XML page, as a store answers when it refuses", _AGAIN),
    (b"<!doctype html", "an HTML page", f"A browser's or wget's copy of the page about the file. {_AGAIN}"),
    (b"<html", "an HTML page", f"A browser's or wget's copy of the page about the file. {_AGAIN}"),
    (b"{", "JSON text, such as a configuration or an index of weights", "Give the file of weights beside it."),
)


def head_of(path: Path) -> bytes:
    """Read the first bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def is_safetensors(head: bytes) -> bool:
    """Whether a file with these first bytes is in the safetensors format: the size of a JSON header, and the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40


def foreign_file(head: bytes) -> tuple[str, str] | None:
    """Recognise by its first bytes a file whose weights cannot be read: (what it is, what to do); None for others."""
    if is_safetensors(head):  # checked first: its size field may start with any byte
        return None
    if head.startswith(LFS):
        size = re.search(rb"^size ([0-9]{1,15})$", head, re.MULTILINE)
        of = f" to {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer{of}", "Fetch what it stands for: git lfs pull, or a download from the hub's page."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind, do in _BEGINNINGS:
        if head.startswith(beginning) or start.startswith(beginning):
            return kind, do
    if PICKLE.match(head):
        return "a bare pickle, as torch before 1.6 wrote", f"Save it again with a newer torch: {CONVERT}."
    return None


def in_folder(folder: Path) -> tuple[str, str]:
    """Recognise a folder that was given in place of a file of weights: (what it is, which file to give)."""
    if (folder / "config.yaml").is_file() or any(folder.glob("fold_*/config.yaml")):
        return "a run folder of this project", "Begin from that run's weights with model.start=RUN."
    found = _files_of_weights(folder)
    if not found:
        return "a folder without weights", f"Give a file that ends in {', '.join(_WEIGHTS)}."
    return "a folder", f"Give the file in it: {' or '.join(map(str, found[:3]))}."


def _files_of_weights(folder: Path) -> list[Path]:
    """List the files of weights in a folder, or in the snapshots of a hub's cache. open_clip's files come first, then
    safetensors: hubs often hold one model in two formats."""
    found = [path for pattern in ("*", "snapshots/*/*", "*/mp_rank_*_model_states.pt") for path in folder.glob(pattern)]
    found = sorted(path for path in found if path.suffix in _WEIGHTS and "optim" not in path.name)
    own = [path for path in found if path.name.startswith("open_clip")] or found
    return sorted(own, key=lambda path: path.suffix != ".safetensors")


def foreign_names(names: Collection[str]) -> tuple[str, str] | None:
    """Recognise weights by their names when they are not a CLIP in OpenAI's or open_clip's layout: (what they are, what
    to give instead); None for others."""
    for marks, kind, do in _LAYOUTS:
        if all(_any(mark, names) for mark in marks):
            return kind, do
    return None


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for name in names)


_OPEN_CLIP = "open_clip_model.safetensors or open_clip_pytorch_model.bin of its page, or OpenAI's own .pt file"
_LAYOUTS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (r"(.*\.)?(vision_model|text_model)\.(encoder|embeddings)\.",),
        "a model in the names of transformers (vision_model..., text_model...)",
        f"Give the same CLIP in open_clip's or OpenAI's names: {_OPEN_CLIP}.",
    ),
    (
        (r"prompt_learner\.", r"image_encoder\.|clip_model_\."),
        "a checkpoint of the released DFER-CLIP code",
        "Give it as model.released=FILE, which fills the whole model.",
    ),
    (
        (r"towers\.visual\.",),
        "the weights of a run of this project",
        "Give its run folder as model.start=RUN.",
    ),
    (
        (r"blocks\.[0-9]+\.attn\.", r"patch_embed\."),
        "an image model in the names of timm",
        f"Both towers of a CLIP are needed: {_OPEN_CLIP}.",
    ),
)
