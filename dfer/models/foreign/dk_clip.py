"""Translate the names of DK-CLIP's and X-CLIP's released code to this project's.

Sources: github liliupeng28/DK-CLIP; github microsoft/VideoX, X-CLIP. X-CLIP names the integration `mit` and the prompt
generator `prompts_generator`, has no second encoder, and integrates frames in place of snippets.

Letters: T frames = S snippets of N frames, D embedding.
"""

import math
import re
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from dfer.errors import CheckpointError, message

BLOCK = r"transformer\.resblocks\.([0-9]{1,3})"
PROMPTS = r"prompts_generator(?:_cmam)?"
LAYER = rf"{PROMPTS}\.decoder\.([0-9]{{1,2}})"

# (pattern of a released name, replacement that gives this project's name).
NAMES = (
    (rf"visual\.{BLOCK}\.(.+)", r"towers.visual.blocks.\1.\2"),
    (r"visual\.(class_embedding|positional_embedding|proj|conv1\.weight|ln_(?:pre|post)\..+)", r"towers.visual.\1"),
    (rf"visual_semantic\.{BLOCK}\.(.+)", r"semantic.blocks.\1.\2"),
    (r"visual_semantic\.(class_embedding|positional_embedding|ln_pre\..+)", r"semantic.\1"),
    (r"(?:msim|mit)\.positional_embedding", r"integration.positions"),
    (r"(?:msim|mit)\.resblocks\.0\.attn\.(.+)", r"integration.attn.\1"),
    (r"(?:msim|mit)\.resblocks\.0\.ln_([12])\.(.+)", r"integration.norm\1.\2"),
    (r"(?:msim|mit)\.resblocks\.0\.mlp\.c_fc\.(.+)", r"integration.mlp.0.\1"),
    (r"(?:msim|mit)\.resblocks\.0\.mlp\.c_proj\.(.+)", r"integration.mlp.2.\1"),
    (r"prompts_visual_ln\.(.+)", r"visual_tokens.norm.\1"),
    (r"prompts_visual_proj", r"visual_tokens.proj"),
    (rf"{PROMPTS}\.(alpha|norm\..+)", r"prompts.\1"),
    (rf"{LAYER}\.(cross_attn\..+|norm1\..+)", r"prompts.layers.\1.\2"),
    (rf"{LAYER}\.norm3\.(.+)", r"prompts.layers.\1.norm2.\2"),
    (rf"{LAYER}\.mlp\.0\.(.+)", r"prompts.layers.\1.mlp.0.\2"),
    (rf"{LAYER}\.mlp\.3\.(.+)", r"prompts.layers.\1.mlp.2.\2"),
    (r"((?:token_embedding|positional_embedding|transformer|ln_final|text_projection).*)", r"towers.text.\1"),
)

UNUSED = re.compile(r"visual_semantic\.(ln_post\..+|proj)")
"""Left out: the second encoder's class token is not used, so neither are its last norm and its projection."""
SECOND = "visual_semantic."
"""Begin of the second encoder's names, which X-CLIP lacks."""
FIRST, SEMANTIC, POSITIONS = "towers.visual.", "semantic.", "integration.positions"
"""This project's names: the begins of both encoders', and the integration's positions."""

SCALE, LOG_SCALE = "logit_scale", math.log(100)


def left_out(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names that are not loaded, each with the reason."""
    found = {name: "the second encoder's class token is not used" for name in weights if UNUSED.fullmatch(name)}
    return found | ({SCALE: "CLIP's own scale, 100, as model.temperature has it"} if SCALE in weights else {})


def is_x_clip(weights: Mapping[str, Tensor]) -> bool:
    """Whether a file is one of X-CLIP."""
    return any(name.startswith("mit.") for name in weights) and not any(name.startswith(SECOND) for name in weights)


def extended(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, copied: bool, where: object
) -> dict[str, Tensor]:
    """Return all weights of a DK-CLIP that begins from an X-CLIP. Nothing of it was trained as a DK-CLIP.

    The positions of an X-CLIP's T frames become those of S snippets, each the mean over its N frames, as a snippet's
    feature is. weights: of the X-CLIP, under this project's names. own: the DK-CLIP's weights before. copied: take the
    second encoder from the file's image encoder, with its messages; else it stays as it is.

    Raises:
        CheckpointError: the X-CLIP has no positions, or the snippets do not divide its frames.
    """
    second = {name: own[name] for name in own if name.startswith(SEMANTIC)}
    if copied:
        first = {f"{SEMANTIC}{name.removeprefix(FIRST)}": value for name, value in weights.items()}
        second = {name: first[name] for name in second if name in first}
    positions = _of_snippets(weights.get(POSITIONS), len(own[POSITIONS]), where)
    return {**weights, **second, POSITIONS: positions}


def _of_snippets(positions: Tensor | None, snippets: int, where: object) -> Tensor:
    """Average positions [T D] over the frames of each snippet: [S D]."""
    if positions is None or positions.ndim != 2 or not len(positions) or len(positions) % snippets:
        got = "none" if positions is None or positions.ndim != 2 else f"{len(positions)}"
        do = "Set data.frames and model.snippet so that data.frames / model.snippet divides it."
        expected = f"positions of an X-CLIP's frames, a multiple of {snippets} snippets"
        raise CheckpointError(message(where, expected=expected, got=got, do=do))
    return rearrange(positions, "(s n) d -> s n d", s=snippets).mean(dim=1)


def ours(weights: Mapping[str, Tensor], *, where: object = "the file") -> dict[str, Tensor]:
    """Return the weights under this project's names. where: for messages.

    Raises:
        CheckpointError: a name that neither code has, or another logit scale than CLIP's, which both freeze at 100.
    """
    _check_scale(weights.get(SCALE), where)
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name != SCALE and not UNUSED.fullmatch(name):
            own = _own_name(name, where)
            out[own] = rearrange(value, "one s d -> (one s) d") if own == POSITIONS and value.ndim == 3 else value
    return out


def _own_name(name: str, where: object) -> str:
    for pattern, own in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, own, name)
    expected, do = "the names of DK-CLIP's or X-CLIP's released code", "Give the --method that wrote this file."
    raise CheckpointError(message(where, expected=expected, got=name[:80], do=do))


def _check_scale(scale: Tensor | None, where: object) -> None:
    if scale is None or torch.allclose(scale.float(), torch.tensor(LOG_SCALE), atol=1e-2, rtol=0):
        return
    expected, got = f"{SCALE} of {LOG_SCALE:.3f}, as CLIP has it", f"{float(scale.float().flatten()[0]):.3f}"
    do = "Give a file of the released code, which does not train this scale."
    raise CheckpointError(message(where, expected=expected, got=got, do=do))
