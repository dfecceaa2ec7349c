"""DFER-CLIP (Zhao & Patras, BMVC 2023): CLIP with learnable class prompts and a temporal transformer.

Letters: B clips, T frames, C colours, H height, W width, K classes, D embedding.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.config import ConfigProblem, key
from dfer.emotions import Emotions, TextKind
from dfer.errors import UsageError, message
from dfer.models.prompts import ContextPosition, PromptLearner, layout
from dfer.models.temporal import TemporalConfig, temporal_model
from dfer.models.towers import Towers, TowersConfig
from dfer.recognition import PADDING, ClipBatch, Progress, Recognition, Recognizer

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class DferClipConfig:
    """DFER-CLIP and its ablations (tables 1, 2, 4 and 5 of the paper); the defaults are the published model.

    towers: which CLIP. released: path of a checkpoint that the authors' code wrote; it fills the whole model.
    start: folder (also s3://...) of a run whose weights this one begins from: its selected checkpoint, the parameters
        of equal name and shape, contexts of classes by class name; of a cross-validation's folder the same fold.
    text: the fixed part of a class's prompt. num_contexts: learnable vectors beside it (0, 4, 8, 16 in the paper).
    context_position: `end` puts the text behind the contexts, `front` before, `middle` between them.
    shared_contexts: one set of contexts for all classes instead of one each.
    temporal: the temporal model; depth 0 averages the frames.
    train_image: whether the image tower is trained; the text tower never is.
    temperature: divides the cosine similarity; CLIP's own scale is not used.
    """

    name: Literal["dfer_clip"] = "dfer_clip"
    towers: TowersConfig = field(default_factory=TowersConfig)
    released: str | None = key(None, path=True)
    start: str | None = key(None, path=True)
    text: TextKind = "class_descriptor"
    num_contexts: int = 8
    context_position: ContextPosition = "end"
    shared_contexts: bool = False
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    train_image: bool = True
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.released is not None and self.start is not None:
            raise ConfigProblem("released, start: expected one of them, got both. Set one to null.")
        if self.num_contexts < 0:
            raise ConfigProblem(f"num_contexts: expected 0 or more, got {self.num_contexts}.")
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. The paper's is 0.01.")
        if not (self.num_contexts or self.temporal.depth or self.train_image):
            raise ConfigProblem(
                "num_contexts, temporal.depth, train_image: with 0, 0 and false nothing is left to train. "
                "Turn one of them on."
            )


class DferClip(Recognizer):
    """Cosine similarity of a clip's feature and those of the class prompts."""

    def __init__(self, config: DferClipConfig, *, towers: Towers, emotions: Emotions, num_frames: int) -> None:
        super().__init__()
        self.config = config
        self.num_frames = num_frames
        self.towers = towers
        self.towers.visual.requires_grad_(config.train_image)
        placed = layout(
            emotions.texts(config.text),
            num_contexts=config.num_contexts,
            position=config.context_position,
            context_length=towers.context_length,
        )
        self.prompts = PromptLearner(placed, width=towers.text_width, shared=config.shared_contexts)
        self.temporal = temporal_model(towers.embed_dim, num_frames=num_frames, config=config.temporal)

    @property
    def image_size(self) -> int:
        """Height and width of a frame in pixels, as the image tower takes it."""
        return self.towers.image_size

    def forward(self, batch: ClipBatch) -> Recognition:
        """Logits [B K] in fp32 for uint8 frames [B T C H W]; frames are scaled to 0..1 and not normalised."""
        video, text = self.encode_video(batch.frames), self.encode_text()
        with torch.autocast(video.device.type, enabled=False):
            cosine = F.normalize(video.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        return Recognition(logits=cosine / self.config.temperature)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Clip features [B D], not normalised, of uint8 frames [B T C H W]."""
        self._check(frames)
        dtype = next(self.towers.visual.parameters()).dtype
        pictures = rearrange(frames, "b t c h w -> (b t) c h w").to(dtype) / 255
        features = self.towers.encode_frames(pictures)
        return self.temporal(rearrange(features, "(b t) d -> b t d", b=len(frames)))  # type: ignore[no-any-return]

    def encode_text(self) -> Tensor:
        """Class features [K D], not normalised."""
        return self.prompts(self.towers)  # type: ignore[no-any-return]

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Cross entropy, averaged over the rows that are no padding."""
        labels = batch.labels.masked_fill(batch.index == PADDING, IGNORED)
        total = F.cross_entropy(out.logits, labels, ignore_index=IGNORED, reduction="sum")
        return {"cross_entropy": total / (labels != IGNORED).sum().clamp(min=1)}

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """`temporal`, `image`, `prompts`, as far as they are trained."""
        parts = {"temporal": self.temporal, "image": self.towers.visual, "prompts": self.prompts}
        groups = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        return {name: group for name, group in groups.items() if group}

    def class_parameters(self) -> frozenset[str]:
        """The contexts [K N W], where every class has its own."""
        own = self.prompts.contexts is not None and not self.config.shared_contexts
        return frozenset({"prompts.contexts"} if own else ())

    def _check(self, frames: Tensor) -> None:
        size, height, width = self.towers.image_size, *frames.shape[-2:]
        if (height, width) != (size, size):
            raise UsageError(
                message("frames", expected=f"{size} x {size} pixels, as the image tower takes them",
                        got=f"{height} x {width}", do=f"Set data.size={size} or model.towers.image_size={height}.")
            )  # fmt: skip
        if frames.shape[1] > self.num_frames:
            raise UsageError(
                message("frames", expected=f"at most {self.num_frames} a clip", got=str(frames.shape[1]),
                        do=f"Set data.frames={self.num_frames}, or train with more frames.")
            )  # fmt: skip
