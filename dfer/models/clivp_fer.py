"""CLIVP-FER (Saadi et al.): a classifier on a frozen CLIP's image feature and the feature of a caption of the face.

Letters: B clips, T frames, C colours, H height, W width, K classes, D embedding, F input width of the head.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import Emotions
from dfer.errors import message
from dfer.models.config_clivp_fer import ClivpFerConfig
from dfer.models.layers import IMAGENET_MEAN, IMAGENET_STD
from dfer.models.losses import cross_entropy
from dfer.models.prompts import layout
from dfer.models.texts import class_texts
from dfer.models.towers import FEATURE, Towers
from dfer.recognition import ClipBatch, FeatureBatch, Group, Progress, Recognition, Recognizer, labels_of

HIDDEN = 512
TEMPERATURE = 0.01
"""Divides the cosine similarity in the frozen CLIP's own prediction: the inverse of its scale after training, 100."""
VISUAL = "towers.visual."
CAPTIONS = {
    "zero_shot": "caption of the class that the frozen CLIP predicts",
    "all": "mean of all captions, weighted by the frozen CLIP's prediction",
    "true_label": "caption of the true label, at test time too",
}


class ClivpFer(Recognizer):
    """Class logits of a two-layer head; both towers are frozen, so features may come from feature shards."""

    def __init__(self, config: ClivpFerConfig, *, towers: Towers, emotions: Emotions, frames: bool = True) -> None:
        """frames: False if the input is stored features; the image tower's weights are then freed."""
        super().__init__()
        self.config = config
        self.towers = towers.requires_grad_(False)
        self.dim = _checked_dim(towers.embed_dim)
        if not frames:
            towers.visual = nn.Identity()
        self.prompts = layout(
            class_texts(emotions, config.text),
            num_contexts=0,
            position="end",
            context_length=towers.context_length,
        )
        self.head = Head(self.width, len(emotions), dropout=config.dropout)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)
        self._texts: Tensor | None = None
        self.register_load_state_dict_post_hook(_forget_texts)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "ClivpFer":
        """Set the mode of the head; the towers stay in evaluation mode."""
        super().train(mode)
        self.towers.eval()
        return self

    @property
    def width(self) -> int:
        """F: 3 D / 4 in mode 1, D or D / 4 in mode 0."""
        if self.config.mode == 1:
            return self.dim // 4 + self.dim // 2
        return self.dim // 4 if self.config.pooling == "released" else self.dim

    @property
    def normalisation(self) -> str:
        """ImageNet's mean and deviation."""
        return "ImageNet's mean and deviation"

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    @property
    def presentation(self) -> str:
        """Which caption stands beside a picture, or how its feature is pooled without one."""
        if self.config.mode == 1:
            return f"caption {self.config.caption}: {CAPTIONS[self.config.caption]}"
        return f"no caption, pooling {self.config.pooling or 'none'}"

    @property
    def leaks_label(self) -> bool:
        """Whether the caption is chosen by the true label."""
        return self.config.leaks_label

    def forward(self, batch: ClipBatch | FeatureBatch) -> Recognition:
        """Compute logits [B K] of frames uint8 [B T C H W], or of features `frames` float [B T D]."""
        frames = batch.features[FEATURE] if isinstance(batch, FeatureBatch) else self.encode(batch)[FEATURE]
        with torch.autocast(frames.device.type, enabled=False):
            joined = self.join(frames.float().mean(dim=1), batch)
        return Recognition(logits=self.head(joined))

    def join(self, image: Tensor, batch: ClipBatch | FeatureBatch) -> Tensor:
        """Compute the head's input [B F] of image features [B D], which are not normalised."""
        if self.config.mode == 0:
            return pairs(pairs(image)) if self.config.pooling == "released" else image
        return pairs(torch.cat([pairs(image), self.captions(image, batch)], dim=-1))

    @torch.no_grad()
    def captions(self, image: Tensor, batch: ClipBatch | FeatureBatch) -> Tensor:
        """Choose the caption features [B D] of image features [B D]. Raises ValueError where labels are missing."""
        texts = self.texts(image.device)
        if self.config.caption == "true_label":
            return texts[labels_of(batch)]
        scores = F.normalize(image, dim=-1) @ texts.T / TEMPERATURE
        if self.config.caption == "zero_shot":
            return texts[scores.argmax(dim=-1)]
        return scores.softmax(dim=-1) @ texts

    @torch.no_grad()
    def texts(self, device: torch.device) -> Tensor:
        """Return the normalised features [K D] of the captions; computed once, as the text tower is frozen."""
        if self._texts is None or self._texts.device != device:
            tokens, eos = self.prompts.tokens.to(device), self.prompts.eos.to(device)
            features = self.towers.encode_prompts(self.towers.embed(tokens), eos)
            self._texts = F.normalize(features.float(), dim=-1)
        return self._texts

    @torch.no_grad()
    def encode(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Compute the frozen tower's features of a batch: `frames`, float [B T D], not normalised."""
        pictures = rearrange(batch.frames, "b t c h w -> (b t) c h w").to(self.mean.dtype) / 255
        found = self.towers.encode_frames((pictures - self.mean) / self.std)
        return {FEATURE: rearrange(found, "(b t) d -> b t d", b=len(batch.frames))}

    def tower_weights(self) -> frozenset[str]:
        """Names of the image tower's weights; runs on stored features hold the text tower too."""
        return frozenset(name for name in self.state_dict() if name.startswith(VISUAL))

    def class_parameters(self) -> frozenset[str]:
        """Names of the weights of the head's last layer, which have one row per class."""
        return frozenset({"head.out.weight", "head.out.bias"})

    def loss(self, out: Recognition, batch: ClipBatch | FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return one group, `head`."""
        return {"head": Group(params=list(self.head.parameters()))}


class Head(nn.Module):
    """Linear, ReLU, dropout, linear: [B F] -> [B K]."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits [B K] of [B F]."""
        logits: Tensor = self.out(self.dropout(F.relu(self.hidden(x))))
        return logits


def pairs(x: Tensor) -> Tensor:
    """Average adjacent pairs: [B F] -> [B F/2]."""
    return reduce(x, "b (f two) -> b f", "mean", two=2)


def _checked_dim(dim: int) -> int:
    """Raise ConfigProblem unless groups of four divide the embedding: else a pair would hold image and text."""
    if dim % 4:
        do = "Choose another model.towers.arch."
        raise ConfigProblem(message("towers.arch", expected="an embedding of a multiple of 4", got=str(dim), do=do))
    return dim


def _forget_texts(model: nn.Module, _: object) -> None:
    """Drop the stored caption features when other weights are loaded."""
    assert isinstance(model, ClivpFer)
    model._texts = None
