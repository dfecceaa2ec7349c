"""Zero-shot CLIP: the mean frame feature of a clip beside the class texts (Radford et al., 2021, section 3.1); with a
projection head, Exp-CLIP (Zhao et al., WACV 2025, section 3.3). Trains nothing.

Letters: B clips, T frames, K classes, P texts of all classes together, D embedding, H projected width.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dfer.emotions import Emotions
from dfer.errors import CheckpointError, message
from dfer.models.class_texts import ClassTexts
from dfer.models.config import ZeroShotConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.foreign.weights import read_weights
from dfer.models.frozen import FrozenTowers, check_size, normalisation_words
from dfer.models.head_file import other_weights, refuse_other_clip, weights_of
from dfer.models.losses import cross_entropy
from dfer.models.towers import FEATURE
from dfer.recognition import ClipBatch, FeatureBatch, Group, Progress, Recognition, Recognizer

HEAD = "mlp.weight"
"""Name of the projection [H D] in the released files of Exp-CLIP."""


class ZeroShot(Recognizer):
    """Class logits: cosine similarity of P(mean frame feature) and P(class text), P being the head or the identity."""

    def __init__(self, config: ZeroShotConfig, *, towers: FrozenTowers, emotions: Emotions) -> None:
        super().__init__()
        self.config, self.towers = config, towers
        self.texts = ClassTexts(emotions, config.text, context_length=towers.context_length)
        self.head, self._note = None, ""
        if config.head:
            self.head = nn.Parameter(read_head(Path(config.head), dim=towers.embed_dim, towers=config.towers))
            self._note = "" if config.start else other_weights(Path(config.head), weights_of(config.towers))
        self.requires_grad_(False)
        self._known: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Compute the text features anew at the next forward pass, since the weights changed."""
        self._known = None

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return normalisation_words(self.config.clip_normalisation)

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights, and of the head's."""
        head = f"model.head={self.config.head}" if self.config.head else None
        return "; ".join(filter(None, (self.towers.origin, head, self._note))) or None

    def forward(self, batch: ClipBatch | FeatureBatch) -> Recognition:
        """Compute logits [B K] of frames uint8 [B T C H W], or of features `frames` float [B T D]."""
        if isinstance(batch, ClipBatch):
            check_size(batch.frames, self.towers.image_size)
        clips = self.towers.features(batch, normalise=self.config.clip_normalisation).mean(dim=1)
        texts = self._text_features(clips.device)
        logits = class_logits(clips, self.texts, texts, head=self.head, temperature=self.config.temperature)
        return Recognition(logits=logits)

    def _text_features(self, device: torch.device) -> Tensor:
        """Return the projected text features [P H], computed once."""
        if self._known is None or self._known.device != device:
            with torch.no_grad():
                self._known = projected(self.texts(self.towers), self.head)
        return self._known

    def encode(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Compute the frozen tower's features of a batch: `frames`, float [B T D], not normalised."""
        return {FEATURE: self.towers.features(batch, normalise=self.config.clip_normalisation)}

    def tower_weights(self) -> frozenset[str]:
        """Names of the image tower's weights."""
        return frozenset(name for name in self.state_dict() if name.startswith("towers.visual."))

    def loss(self, out: Recognition, batch: ClipBatch | FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        """Cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return no group: nothing is trained."""
        return {}


def projected(features: Tensor, head: Tensor | None) -> Tensor:
    """Project features [N D] to [N H] in fp32; only converted to fp32 without a head."""
    with torch.autocast(features.device.type, enabled=False):
        return features.float() if head is None else features.float() @ head.T


def class_logits(clips: Tensor, texts: ClassTexts, known: Tensor, *, head: Tensor | None, temperature: float) -> Tensor:
    """Compute logits [B K] of mean frame features [B D] and projected text features [P H]."""
    return texts.logits(projected(clips, head), known) / temperature


def read_head(path: Path, *, dim: int, model: str = "model", towers: TowersConfig | None = None) -> Tensor:
    """Read a projection head, fp32 [H D], from a file with the one tensor `mlp.weight` [H D].

    model: key of the model in the configuration, for messages. towers: the CLIP of width `dim` that it is used with.

    Raises:
        CheckpointError: the file is missing or damaged, holds something else, or is made for another tower.
    """
    arch = towers.arch if towers is not None else ""
    weights = read_weights(path)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(weights.items())[:3])
    expected = f"one tensor {HEAD} of (any number, {dim})" + (f", the width of {arch}" if arch else "")
    if set(weights) != {HEAD} or weights[HEAD].dim() != 2 or not weights[HEAD].is_floating_point():
        do = f"Give a head of Exp-CLIP, such as ExpCLIP_B32_model.pth; a CLIP goes to {model}.towers.pretrained."
        raise CheckpointError(message(path, expected=expected, got=shapes, do=do))
    if weights[HEAD].shape[1] != dim:
        do = f"Set {model}.towers.arch to the CLIP it was fitted on (512: ViT-B, 768: ViT-L-14), or give another head."
        raise CheckpointError(message(path, expected=expected, got=shapes, do=do))
    if towers is not None:
        refuse_other_clip(path, towers, model=model)
    return weights[HEAD].float()
