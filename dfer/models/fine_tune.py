"""Full fine-tuning: a linear classifier on a trained CLIP image tower, with or without a temporal model (Zhao & Patras,
BMVC 2023, table 2).

Letters: B clips, T frames, C colours, H height, W width, K classes, D embedding.
"""

from torch import Tensor, nn

from dfer.emotions import Emotions
from dfer.models.config import FineTuneConfig
from dfer.models.frozen import VisualTower, check_size, frame_features, normalisation_words
from dfer.models.losses import cross_entropy
from dfer.models.temporal import temporal_model
from dfer.recognition import ClipBatch, Group, Progress, Recognition, Recognizer


class FineTune(Recognizer):
    """Class logits W x clip feature + b; the temporal model makes the clip feature of the frame features."""

    def __init__(self, config: FineTuneConfig, *, tower: VisualTower, emotions: Emotions, num_frames: int) -> None:
        super().__init__()
        self.config, self.towers = config, tower
        self.temporal = temporal_model(tower.embed_dim, num_frames=num_frames, config=config.temporal)
        self.head = nn.Linear(tower.embed_dim, len(emotions))

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return normalisation_words(self.config.clip_normalisation)

    @property
    def origin(self) -> str | None:
        """Origin of the tower's weights."""
        return self.towers.origin

    def forward(self, batch: ClipBatch) -> Recognition:
        """Compute logits [B K] of uint8 frames [B T C H W]."""
        check_size(batch.frames, self.towers.image_size)
        frames = frame_features(self.towers.visual, batch.frames, normalise=self.config.clip_normalisation)
        return Recognition(logits=self.head(self.temporal(frames)))

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return the groups `image`, `head` and, with a temporal model, `temporal`."""
        parts = {"image": self.towers, "temporal": self.temporal, "head": self.head}
        groups = {name: Group(params=list(part.parameters())) for name, part in parts.items()}
        return {name: group for name, group in groups.items() if group.params}

    def class_parameters(self) -> frozenset[str]:
        """The weights of the classifier."""
        return frozenset({"head.weight", "head.bias"})
