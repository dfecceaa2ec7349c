"""The files of a fitted projection head: safetensors, the layout of Exp-CLIP's released heads, and a card; and of which
CLIP a head is, by the metadata of a fitted one and by the bytes of a released one."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.models.card import LICENCE
from dfer.models.config_towers import TowersConfig
from dfer.models.files import SHA256, file_id, is_tag
from dfer.models.foreign.weights import MAX_HEADER_BYTES
from dfer.models.towers import clip_settings
from dfer.storage import Folder
from dfer.text_files import write_text

FILE, RELEASED, CARD = "head.safetensors", "ExpCLIP_head.pth", "README.md"
WEIGHT = "mlp.weight"
CLIP = "clip"
"""Key of the safetensors metadata: of which CLIP a head is. It is the only key, since the order of several may vary."""
HEADS = {
    "c7d28eb6c9665e709d9d6a422864a9d5713432f3": "B32",
    "6f2b877fec83699e17283a511002376d117ce45f": "B16",
    "febcf3447362f5b3654de12f89b2185414d62ec8": "L14",
}
"""Exp-CLIP's released heads by git's hash of the file, as the tree of the release has it."""
ARCHS = {"B32": "ViT-B-32-quickgelu", "B16": "ViT-B-16-quickgelu", "L14": "ViT-L-14-quickgelu"}
"""The CLIP that belongs to each released head, with OpenAI's weights."""
OPENAI_FILES = ("ViT-B-32.pt", "ViT-B-16.pt", "ViT-L-14.pt")
"""Names of OpenAI's files of these CLIPs."""
OPENAI = "tag openai"


def write_head(
    home: Folder,
    weight: Tensor,
    *,
    facts: Mapping[str, str],
    pairs: Mapping[str, Any],
    clip: "MadeFor | None" = None,
) -> None:
    """Write a head, fp32 [D S], in all its forms. facts: what the card says, by heading. pairs: the key of the pairs it
    was fitted on, whose CLIP the card's commands give. clip: of which CLIP it is. Raises StorageError."""
    import tempfile

    tensors = {WEIGHT: weight.contiguous()}
    home.write(FILE, save(tensors, metadata=None if clip is None else {CLIP: clip.to_json()}))
    with tempfile.TemporaryDirectory(prefix="dfer-") as staged:
        torch.save(tensors, Path(staged) / RELEASED)
        home.write(RELEASED, (Path(staged) / RELEASED).read_bytes())
    write_text(home, CARD, _card(weight, facts, pairs))


# --- of which CLIP a head is


@dataclass(frozen=True, kw_only=True)
class MadeFor:
    """The CLIP on which a head was fitted. arch: its name, or that of its JSON file. settings: as `settings_sha256`
    gives it. weights: a tag, name and SHA-256 of a file, or words. released: of a head that was imported from a file of
    the release, `B32`, `B16` or `L14`, and the SHA-256 of its numbers, fp32."""

    arch: str
    settings: str
    weights: Any
    released: tuple[str, str] | None = None

    @classmethod
    def of_release(cls, size: str, weight: Tensor | None = None) -> "MadeFor":
        """The CLIP of a released head. weight: its numbers, fp32 [D S], if they are to be recognised in other files."""
        arch = ARCHS[size]
        released = (
            None
            if weight is None
            else (size, hashlib.sha256(_said(save({WEIGHT: weight.contiguous()}))[1]).hexdigest())
        )
        settings = settings_sha256(TowersConfig(arch=arch))
        return cls(arch=arch, settings=settings, weights=OPENAI, released=released)

    def to_json(self) -> str:
        """The metadata."""
        return json.dumps({name: each for name, each in vars(self).items() if each is not None}, sort_keys=True)


def settings_sha256(towers: TowersConfig) -> str:
    """SHA-256 of an architecture's sizes and activation, without the size of the pictures."""
    settings = clip_settings(towers)
    settings["vision_cfg"].pop("image_size", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def made_for(path: Path) -> MadeFor | None:
    """Return the CLIP of a head's file; None if it does not say."""
    size = released_head(path)
    return MadeFor.of_release(size) if size else _said(path.read_bytes())[0]


def released_head(path: Path) -> str:
    """Return `B32`, `B16` or `L14` for a file of the release, by git's hash of its bytes, and for what `dfer import`
    made of one, if its numbers still have the hash that the import recorded; empty for any other."""
    data = path.read_bytes()
    if found := HEADS.get(hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()):
        return found
    made, numbers = _said(data)
    size, sha256 = (made and made.released) or ("", "")
    return size if size in ARCHS and hashlib.sha256(numbers).hexdigest() == sha256 else ""


def _said(data: bytes) -> tuple[MadeFor | None, bytes]:
    """Return what a head's metadata say about its CLIP, None if nothing, and the bytes of its numbers."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] if length <= MAX_HEADER_BYTES else b""
    try:
        found = json.loads(json.loads(header)["__metadata__"][CLIP])
        released = (str(found["released"][0]), str(found["released"][1])) if "released" in found else None
        made = MadeFor(
            arch=str(found["arch"]), settings=str(found["settings"]), weights=found["weights"], released=released
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        made = None
    return made, data[8 + len(header) :]


def refuse_other_clip(path: Path, towers: TowersConfig, *, model: str) -> None:
    """Raise CheckpointError if a head says that it is of another architecture than these towers: of equal width, it
    would load and answer by chance. model: key of the model in the configuration, for the message."""
    made = made_for(path)
    if made is not None and made.arch != towers.arch and made.settings != settings_sha256(towers):
        where, do = f"{model}.head={path}", f"Set {model}.towers to that CLIP, or give another head."
        expected, got = f"a head of {towers.arch}", f"one that was fitted on {made.arch}"
        raise CheckpointError(message(where, expected=expected, got=got, do=do))


def other_weights(path: Path, ours: Any) -> str:
    """Note that a head is of other weights than the towers'; empty if it is not, or nothing is known.

    ours: as `MadeFor.weights`; None if unknown.
    """
    made = made_for(path)
    if made is None or ours is None or _alike(made.weights, ours):
        return ""
    return f"{path.name} was fitted on {_words(made.weights)}, and these towers have {_words(ours)}"


def weights_of(towers: TowersConfig) -> Any:
    """Identify the weights of towers as `MadeFor.weights` does; None for random or missing ones."""
    if towers.pretrained is None or is_tag(towers.arch, towers.pretrained):
        return towers.pretrained and f"tag {towers.pretrained}"
    found = file_id(towers.pretrained)
    return found if SHA256 in found else None


def _alike(theirs: Any, ours: Any) -> bool:
    """Whether weights are, or may be, the same: by SHA-256, by tag, or by the names of OpenAI's files."""
    files = [each for each in (theirs, ours) if isinstance(each, Mapping)]
    if len(files) == 2:
        sums = [each.get("sha256") for each in files]
        return None in sums or sums[0] == sums[1]
    if len(files) == 1:
        return files[0].get("name") in OPENAI_FILES and OPENAI in (theirs, ours)
    drawn = [str(each).startswith(("random", "drawn")) for each in (theirs, ours)]
    return bool(theirs == ours or all(drawn))


def _words(weights: Any) -> str:
    if isinstance(weights, Mapping):
        return f"the file {weights.get('name')} (sha256 {str(weights.get('sha256'))[:12]})"
    return f"the weights: {weights!s:.80}"


# --- the card


def _card(weight: Tensor, facts: Mapping[str, str], pairs: Mapping[str, Any]) -> str:
    front = "---\nlicense: other\nlicense_name: see-card\ntags: [clip, projection-head]\n---\n\n"
    title = f"# Projection head, {weight.shape[1]} to {weight.shape[0]}\n\n"
    body = (
        f"A linear map without bias from features of CLIP's image and text tower to the space of a teacher (Exp-CLIP, "
        f"Zhao et al., WACV 2025). `{FILE}` and `{RELEASED}` hold the same tensor, `{WEIGHT}`.\n\n"
    )
    lines = "".join(f"- {name}: {_plain(text)}\n" for name, text in facts.items())
    commands = "".join(f"{command}\n" for command in _commands(pairs))
    where = "HEAD is the folder of this file" + (", FOLDER that of CLIP's file" if "=FOLDER/" in commands else "")
    use = f"Use on a data set SET, or on those of the suite; {where}:\n\n```sh\n{commands}```\n"
    return f"{front}{title}{body}{lines}\n{use}\n{LICENCE}\n"


def _commands(pairs: Mapping[str, Any]) -> tuple[str, str]:
    """Make the commands that evaluate the head with its own CLIP; the reader fills in SET, HEAD and FOLDER."""
    keys = {**_clip_keys(pairs["clip"]), "head": f"HEAD/{FILE}"}
    size = [f"data.size={pairs['size']}"] if "size" in pairs else []
    one = [*(f"model.{name}={value}" for name, value in keys.items()), *size]
    suite = ["models.exp_clip_b32=null", *(f"models.mine.{name}={value}" for name, value in keys.items())]
    # Names in stored pairs may be a stranger's: no markup first, then one word of the shell each.
    one, suite = ([shlex.quote(_plain(word)) for word in words] for words in (one, suite))
    return (
        f"dfer crossval methods/zero_shot sets/SET {' '.join(one)}",
        f"dfer zeroshot exp_clip/zeroshot {' '.join(suite)}",
    )


def _clip_keys(clip: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of a model with the CLIP that the key of stored pairs has, below `model` or `models.NAME`."""
    arch, weights = _file_or_name(clip.get("arch", "ARCH")), _file_or_name(clip["weights"])
    pretrained = "null" if weights.startswith("random, ") else weights.removeprefix("tag ")
    found = {"towers.arch": arch, "towers.pretrained": pretrained}
    if "image_size" in clip:
        found["towers.image_size"] = str(clip["image_size"])
    return {**found, "clip_normalisation": "true" if clip.get("normalisation") == "clip" else "false"}


def _file_or_name(value: Any) -> str:
    return f"FOLDER/{value.get('name')}" if isinstance(value, Mapping) else str(value)


def _plain(text: str) -> str:
    """A text without markup of its own."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("<", "&lt;").replace("`", "'")
