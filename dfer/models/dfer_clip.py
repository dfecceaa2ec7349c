"""DFER-CLIP (Zhao & Patras, BMVC 2023): CLIP with learnable class prompts and a temporal transformer.

Letters: B clips, T frames, C colours, H height, W width, K classes, D embedding.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.errors import UsageError, message
from dfer.models.config import DferClipConfig
from dfer.models.losses import cross_entropy
from dfer.models.prompts import PromptLearner, layout
from dfer.models.temporal import temporal_model
from dfer.models.texts import class_texts
from dfer.models.towers import Towers
from dfer.recognition import ClipBatch, Group, Progress, Recognition, Recognizer


class DferClip(Recognizer):
    """Classifies by the cosine similarity of a clip's feature and the features of the class prompts."""

    def __init__(self, config: DferClipConfig, *, towers: Towers, emotions: Emotions, num_frames: int) -> None:
        super().__init__()
        self.config = config
        self.num_frames = num_frames
        self.towers = towers
        self.towers.visual.requires_grad_(config.train_image)
        placed = layout(
            class_texts(emotions, config.text),
            num_contexts=config.num_contexts,
            position=config.context_position,
            context_length=towers.context_length,
        )
        self.prompts = PromptLearner(placed, width=towers.text_width, shared=config.shared_contexts)
        self.temporal = temporal_model(towers.embed_dim, num_frames=num_frames, config=config.temporal)

    @property
    def normalisation(self) -> str:
        """The released code does not normalise frames."""
        return "none (frames scaled to 0..1)"

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the frames that the image tower takes."""
        return self.towers.image_size

    def forward(self, batch: ClipBatch) -> Recognition:
        """Compute logits [B K] in fp32 for uint8 frames [B T C H W], which are scaled to 0..1 and not normalised."""
        video, text = self.encode_video(batch.frames), self.encode_text()
        with torch.autocast(video.device.type, enabled=False):
            cosine = F.normalize(video.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        return Recognition(logits=cosine / self.config.temperature)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Compute clip features [B D], not normalised, of uint8 frames [B T C H W]."""
        self._check(frames)
        dtype = next(self.towers.visual.parameters()).dtype
        pictures = rearrange(frames, "b t c h w -> (b t) c h w").to(dtype) / 255
        features = self.towers.encode_frames(pictures)
        return self.temporal(rearrange(features, "(b t) d -> b t d", b=len(frames)))  # type: ignore[no-any-return]

    def encode_text(self) -> Tensor:
        """Compute class features [K D], not normalised."""
        return self.prompts(self.towers)  # type: ignore[no-any-return]

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return the groups `temporal`, `image` and `prompts`; a frozen part has no group."""
        parts = {"temporal": self.temporal, "image": self.towers.visual, "prompts": self.prompts}
        trained = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        return {name: Group(params=params) for name, params in trained.items() if params}

    def class_parameters(self) -> frozenset[str]:
        """The contexts [K N W], unless all classes share one set."""
        own = self.prompts.contexts is not None and not self.config.shared_contexts
        return frozenset({"prompts.contexts"} if own else ())

    def _check(self, frames: Tensor) -> None:
        size, height, width = self.towers.image_size, *frames.shape[-2:]
        if (height, width) != (size, size):
            raise UsageError(
                message(
                    "frames",
                    expected=f"{size} x {size} pixels, as the image tower takes them",
                    got=f"{height} x {width}",
                    do=f"Set data.size={size} or model.towers.image_size={height}.",
                )
            )
        if frames.shape[1] > self.num_frames:
            raise UsageError(
                message(
                    "frames",
                    expected=f"at most {self.num_frames} a clip",
                    got=str(frames.shape[1]),
                    do=f"Set data.frames={self.num_frames}, or train with more frames.",
                )
            )
