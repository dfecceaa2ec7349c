"""CLIP in the names of Hugging Face's transformers (CLIPModel), mapped to OpenAI's names.

Source: the names in transformers' modeling_clip.py. Three projections of an attention become one matrix; the two
projections into the common space are transposed.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.models.foreign.architecture import transformers_activation
from dfer.models.foreign.weights import Weights

MARK = re.compile(r"(vision_model|text_model)\.(encoder|embeddings)\.")
_TOWER = {"text_model": "", "vision_model": "visual."}
_LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.([0-9]{1,4})\.(.+)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OTHERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled so there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_POSITION_IDS = re.compile(r"(text_model|vision_model)\.embeddings\.position_ids")
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")
CONFIG = "config.json"


def is_transformers(weights: Weights) -> bool:
    """Whether the names are those of transformers' CLIPModel."""
    return any(MARK.match(name) for name in weights)


def ours(weights: Weights, where: object) -> Weights:
    """Translate to OpenAI's names. The numbers of the positions are left out, after a check that they count from 0.

    Raises CheckpointError for a name that has no counterpart, or an attention without one of its three projections.
    """
    out: Weights = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        layer = _LAYER.fullmatch(name)
        if name in _OTHERS:
            out[_OTHERS[name]] = value
        elif name in _TRANSPOSED and value.dim() == 2:
            out[_TRANSPOSED[name]] = value.T.contiguous()
        elif layer and (third := _PROJECTION.fullmatch(layer[3])):
            whole = f"{_block(layer)}.attn.in_proj_{third[2]}"
            thirds.setdefault(whole, {})[third[1]] = value
        elif layer and (own := _IN_LAYER.get(layer[3].rpartition(".")[0])):
            out[f"{_block(layer)}.{own}.{layer[3].rpartition('.')[2]}"] = value
        elif not _POSITION_IDS.fullmatch(name) or not torch.equal(value.flatten(), torch.arange(value.numel())):
            do = "Give the whole CLIPModel of transformers, with no other tensors."
            raise CheckpointError(message(where, expected="the names of transformers' CLIP", got=name[:80], do=do))
    return out | {name: _joined(name, parts, where) for name, parts in thirds.items()}


def _block(layer: re.Match[str]) -> str:
    return f"{_TOWER[layer[1]]}transformer.resblocks.{layer[2]}"


def _joined(name: str, parts: dict[str, Tensor], where: object) -> Tensor:
    found = [parts[third] for third in "qkv" if third in parts]
    if len(found) != 3 or len({part.shape for part in found}) != 1 or found[0].dim() == 0:
        expected, got = f"three projections of one shape for {name}", f"{len(found)}, or of several shapes"
        raise CheckpointError(message(where, expected=expected, got=got, do="Copy the file again."))
    return torch.cat(found)


def activation(path: Path) -> tuple[Path, bool] | None:
    """Find config.json beside a file of weights: its path, and whether both towers have OpenAI's quick GELU."""
    beside = path.parent / CONFIG
    return (beside, transformers_activation(beside)) if beside.exists() else None
