"""Towers for methods that freeze both, or that train the image tower alone; and how frames reach an image tower.

Letters: B clips, T frames, C colours, H height, W width of a picture (of a token in text), D embedding, K prompts,
L tokens.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from dfer.errors import UsageError, message
from dfer.models.config_towers import TowersConfig
from dfer.models.towers import (
    BATCH_NORMS,
    FEATURE,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
    Towers,
)
from dfer.recognition import ClipBatch, FeatureBatch


def normalisation_words(clip: bool) -> str:
    """Say how frames are normalised: by CLIP's own mean and deviation, or not at all."""
    return "CLIP's mean and deviation" if clip else "none (frames scaled to 0..1)"


def frame_features(visual: nn.Module, frames: Tensor, *, normalise: bool) -> Tensor:
    """Compute the projected features [B T D] of uint8 frames [B T C H W]. normalise: the frames, by CLIP's mean and
    deviation; the features are not normalised."""
    pictures = rearrange(frames, "b t c h w -> (b t) c h w").to(next(visual.parameters()).dtype) / 255
    if normalise:
        mean, std = (pictures.new_tensor(x).view(-1, 1, 1) for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        pictures = (pictures - mean) / std
    return rearrange(visual(pictures), "(b t) d -> b t d", b=len(frames))  # type: ignore[no-any-return]


class FrozenTowers(nn.Module):
    """Both towers of a CLIP, frozen: always in evaluation mode, no autograd in the image tower. Gradients pass through
    the text tower to learned prompts."""

    def __init__(self, config: TowersConfig, *, image: bool) -> None:
        """image: whether there are frames to encode; without, the image tower is left out."""
        super().__init__()
        towers = Towers(config)
        self.visual = towers.visual if image else None
        self.text = towers.text
        self.origin = towers.origin
        self.embed_dim, self.text_width = towers.embed_dim, towers.text_width
        self.image_size, self.context_length = towers.image_size, towers.context_length
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenTowers":
        """Ignore `mode` and stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def features(self, batch: ClipBatch | FeatureBatch, *, normalise: bool) -> Tensor:
        """Return frame features [B T D], not normalised: stored ones, or those of the frames."""
        if isinstance(batch, FeatureBatch):
            return batch.features[FEATURE]
        assert self.visual is not None, "towers without an image tower take features"
        return frame_features(self.visual, batch.frames, normalise=normalise)

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up the token embeddings [K L W] of int64 tokens [K L]."""
        return self.text.token_embedding(tokens)  # type: ignore[no-any-return]

    def encode_prompts(self, prompts: Tensor, eos: Tensor) -> Tensor:
        """Compute text features [K D], not normalised, of prompts [K L W] that end at eos [K]."""
        return self.text(prompts, eos)  # type: ignore[no-any-return]


class VisualTower(nn.Module):
    """An image tower that is trained, without a text tower."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        towers = Towers(config)
        self.visual = towers.visual
        self.origin, self.embed_dim, self.image_size = towers.origin, towers.embed_dim, towers.image_size

    def train(self, mode: bool = True) -> "VisualTower":
        """Set the mode, but keep batch norm in evaluation mode, as `Towers` does."""
        super().train(mode)
        for module in self.visual.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self


def check_size(frames: Tensor, size: int) -> None:
    """Raise UsageError unless frames [B T C H W] have the height and width that the image tower takes."""
    height, width = frames.shape[-2:]
    if (height, width) != (size, size):
        expected, got = f"{size} x {size} pixels, as the image tower takes them", f"{height} x {width}"
        do = f"Set data.size={size} or model.towers.image_size={height}."
        raise UsageError(message("frames", expected=expected, got=got, do=do))
