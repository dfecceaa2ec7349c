"""A small convolutional image tower. It learns from random weights and some hundred clips; a ViT of this size does not.

It ends in one linear map over all positions of the last feature map, not in their mean: faces are cropped, so the
position tells which part of the face moves. It uses group norm, because with batch norm the answer would depend on how
ranks divide a batch. It is registered with timm, so that open_clip builds it as a CLIP trunk (`tiny-conv-64.json`).

Letters: N pictures, C colours, H height, W width, D embedding.
"""

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

NAME = "dfer_conv_64"
IMAGE_SIZE = 64
CHANNELS_A_GROUP = 8


class ConvTower(nn.Module):
    """Strided 3x3 convolutions, each halving the picture, then a linear map: [N C H W] -> [N D]."""

    def __init__(self, *, image_size: int, widths: tuple[int, ...], embed_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths):
            norm = nn.GroupNorm(after // CHANNELS_A_GROUP, after)
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        side = image_size // 2 ** len(widths)
        self.head = nn.Linear(widths[-1] * side * side, embed_dim)
        # open_clip reads this from a trunk to choose the head; no head is needed here.
        self.default_cfg: dict[str, Any] = {}

    def forward(self, frames: Tensor) -> Tensor:
        """Features [N D] of pictures [N C H W]."""
        maps = self.layers(frames.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.head(maps.flatten(1))
        return features


@register_model
def dfer_conv_64(pretrained: bool = False, num_classes: int = 128, **_: Any) -> ConvTower:
    """Build the tower for 64 px (timm's entry point); num_classes: width of the embedding. No pretrained weights."""
    return ConvTower(image_size=IMAGE_SIZE, widths=(16, 32, 64, 128), embed_dim=num_classes)
