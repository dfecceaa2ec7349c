"""Co-CoOp (Zhou et al., CVPR 2022): contexts that a small network shifts for every clip, both towers of CLIP frozen.

Co-CoOp classifies pictures; a clip is here represented by its mean frame feature.

Letters: B clips, T frames, K classes, N contexts, W width of a token, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.models.config import CoCoOpConfig
from dfer.models.coop import word_embeddings
from dfer.models.frozen import FrozenTowers, check_size, normalisation_words
from dfer.models.losses import cross_entropy
from dfer.models.prompts import PromptLearner, layout
from dfer.models.texts import class_texts
from dfer.models.towers import FEATURE
from dfer.recognition import ClipBatch, FeatureBatch, Group, Progress, Recognition, Recognizer

REDUCTION = 16
"""The hidden layer of the network is D / 16 wide (Zhou et al., CVPR 2022, section 3.2)."""


class CoCoOp(Recognizer):
    """Class logits: cosine similarity of the mean frame feature and the features of B x K prompts, whose contexts are
    the learned ones plus a bias computed from the clip's normalised feature."""

    def __init__(self, config: CoCoOpConfig, *, towers: FrozenTowers, emotions: Emotions) -> None:
        super().__init__()
        self.config, self.towers = config, towers
        initial = word_embeddings(config.context_words, towers)
        placed = layout(
            class_texts(emotions, config.text),
            num_contexts=config.num_contexts if initial is None else len(initial),
            position="end",
            context_length=towers.context_length,
        )
        self.prompts = PromptLearner(placed, width=towers.text_width, shared=True, initial=initial)
        hidden = max(1, towers.embed_dim // REDUCTION)
        self.meta = nn.Sequential(nn.Linear(towers.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, towers.text_width))

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return normalisation_words(self.config.clip_normalisation)

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    def forward(self, batch: ClipBatch | FeatureBatch) -> Recognition:
        """Compute logits [B K] of frames uint8 [B T C H W], or of features `frames` float [B T D]."""
        if isinstance(batch, ClipBatch):
            check_size(batch.frames, self.towers.image_size)
        features = self.towers.features(batch, normalise=self.config.clip_normalisation)
        clips = F.normalize(features.mean(dim=1).float(), dim=-1)
        texts = self.prompts(self.towers, shift=self.meta(clips))
        with torch.autocast(clips.device.type, enabled=False):
            cosine = torch.einsum("b d, b k d -> b k", clips, F.normalize(texts.float(), dim=-1))
        return Recognition(logits=cosine / self.config.temperature)

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
        """Return the groups `prompts` and `meta`."""
        parts = {"prompts": self.prompts, "meta": self.meta}
        return {name: Group(params=list(part.parameters())) for name, part in parts.items()}
