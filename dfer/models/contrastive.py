"""Contrastive training of CLIP on clips and their captions, evaluated zero-shot with class texts (InfoNCE in both
directions: Radford et al., 2021, section 2.3; on clips and captions of expressions: EmoCLIP, Foteinopoulou & Patras,
FG 2024).

Letters: B clips of this rank, N clips of all ranks, T frames, C colours, H height, W width, K classes, L tokens,
D embedding.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.models.class_texts import ClassTexts
from dfer.models.config import MIN_TEMPERATURE, ContrastiveConfig
from dfer.models.frozen import check_size, frame_features, normalisation_words
from dfer.models.temporal import temporal_model
from dfer.models.towers import END_TOKEN, Towers
from dfer.recognition import PADDING, ClipBatch, Group, Progress, Recognition, Recognizer

Gather = Callable[[Tensor], Tensor]
"""From this rank's rows [B ...] to all ranks' [N ...] in rank order, with gradient. COLLECTIVE."""


class Contrastive(Recognizer):
    """Clip features beside caption features in training, beside class texts in evaluation.

    coupling `step`: each clip has the captions of all other clips of the step as negatives, on all ranks, except
    captions that are word for word its own: such pairs are neither positive nor negative [ours; CLIP has no rule].
    """

    coupling = "step"

    def __init__(
        self, config: ContrastiveConfig, *, towers: Towers, emotions: Emotions, num_frames: int, gather: Gather
    ) -> None:
        super().__init__()
        self.config, self.towers, self._gather = config, towers, gather
        towers.visual.requires_grad_(config.train_image)
        towers.text.requires_grad_(config.train_text)
        self.temporal = temporal_model(towers.embed_dim, num_frames=num_frames, config=config.temporal)
        self.texts = ClassTexts(emotions, config.text, context_length=towers.context_length)
        # One number as a vector: DeepSpeed does not support 0-dimensional parameters.
        log_scale = torch.tensor([-math.log(config.temperature)])
        self.log_scale = nn.Parameter(log_scale, requires_grad=config.learn_temperature)
        self.factors: Tensor
        self.register_buffer("factors", _factors(towers.context_length), persistent=False)

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return normalisation_words(self.config.clip_normalisation)

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    def forward(self, batch: ClipBatch) -> Recognition:
        """Compute class logits [B K] of uint8 frames [B T C H W]; in training, logits [B N] of the clips and all
        captions (`batch.text`, int64 [B L]), and what the loss needs. COLLECTIVE in training."""
        check_size(batch.frames, self.towers.image_size)
        frames = frame_features(self.towers.visual, batch.frames, normalise=self.config.clip_normalisation)
        clips = self.temporal(frames)
        scale = self._log_scale().exp()
        if not self.training:
            return Recognition(logits=scale * self.texts.logits(clips, self.texts(self.towers)))
        return self._pairs(batch, F.normalize(clips.float(), dim=-1), scale)

    @property
    def _learns(self) -> bool:
        return self.config.learn_temperature

    def _log_scale(self) -> Tensor:
        """Return the logarithm of the scale, at most that of MIN_TEMPERATURE where it is learned. What is above the
        limit is subtracted as a constant: a `clamp` would give no gradient there, so the scale could not come down."""
        if not self._learns:
            return self.log_scale
        above = (self.log_scale + math.log(MIN_TEMPERATURE)).clamp(min=0)
        return self.log_scale - above.detach()

    def _pairs(self, batch: ClipBatch, clips: Tensor, scale: Tensor) -> Recognition:
        """Compare this rank's clips and captions with those of all ranks. clips: unit vectors [B D]."""
        assert batch.text is not None, "training needs a text for every clip"
        captions = self._captions(batch.text)
        all_clips, all_captions = self._gather(clips), self._gather(captions)
        keys = caption_keys(batch.text, self.factors)
        index, all_keys = self._gather(batch.index), self._gather(keys)
        own = batch.index[:, None] == index[None]
        same = keys[:, None] == all_keys[None]
        with torch.autocast(clips.device.type, enabled=False):
            left_out = (index == PADDING)[None] | (same & ~own)
            to_captions = (scale * clips @ all_captions.T).masked_fill(left_out, float("-inf"))
            to_clips = (scale * captions @ all_clips.T).masked_fill(left_out, float("-inf"))
        target = own.int().argmax(dim=1)
        return Recognition(logits=to_captions, aux={"to_clips": to_clips, "target": target})

    def _captions(self, text: Tensor) -> Tensor:
        """Compute unit vectors [B D] of captions int64 [B L]."""
        features = self.towers.encode_prompts(self.towers.embed(text), (text == END_TOKEN).int().argmax(dim=1))
        return F.normalize(features.float(), dim=-1)

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the mean of the cross entropies clip -> caption and caption -> clip over this rank's clips that are
        not padding. The engine weights the ranks' means, which gives the mean over all N clips."""
        counts, target = batch.index != PADDING, out.aux["target"]
        total = out.logits.new_zeros(())
        for logits in (out.logits, out.aux["to_clips"]):
            filled = logits.masked_fill(~counts[:, None], 0.0)
            each = F.cross_entropy(filled, target, reduction="none").masked_fill(~counts, 0.0)
            total = total + 0.5 * each.sum()
        return {"info_nce": total / counts.sum().clamp(min=1)}

    def param_groups(self) -> dict[str, Group]:
        """Return the groups `image`, `text`, `temporal` and `scale`; a frozen part has no group."""
        parts: dict[str, nn.Module] = {
            "image": self.towers.visual,
            "text": self.towers.text,
            "temporal": self.temporal,
        }
        trained = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        groups = {name: Group(params=params) for name, params in trained.items() if params}
        return groups | ({"scale": Group(params=[self.log_scale], decay=False)} if self._learns else {})


def caption_keys(text: Tensor, factors: Tensor) -> Tensor:
    """Return one int64 a caption, [B], the same for equal tokens [B L], however many zeros follow them. factors: random
    int64 [L or more]; different captions get equal numbers with a chance of about 1 in 2^62."""
    return (text * factors[: text.shape[1]]).sum(dim=1)  # wraps around at 64 bits


def _factors(length: int) -> Tensor:
    return torch.randint(1, 2**62, (length,), generator=torch.Generator().manual_seed(0))
