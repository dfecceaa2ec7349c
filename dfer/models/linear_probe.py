"""Linear probe: a linear classifier on the mean of a frozen CLIP image tower's frame features (Radford et al., 2021).

Letters: B clips, T frames, C colours, H height, W width, K classes, D embedding.
"""

from torch import Tensor, nn

from dfer.emotions import Emotions
from dfer.models.config import LinearProbeConfig
from dfer.models.losses import cross_entropy
from dfer.models.towers import FEATURE, ImageTower
from dfer.recognition import ClipBatch, FeatureBatch, Group, Progress, Recognition, Recognizer


class LinearProbe(Recognizer):
    """Class logits W x mean over frames + b. The tower is frozen, so its features may come from feature shards."""

    def __init__(self, config: LinearProbeConfig, *, tower: ImageTower | None, dim: int, emotions: Emotions) -> None:
        """tower: None if the input is stored features. dim: D, the width of a frame's feature."""
        super().__init__()
        self.config = config
        self.tower = tower
        self.head = nn.Linear(dim, len(emotions))

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return "CLIP's mean and deviation" if self.config.clip_normalisation else "none (frames scaled to 0..1)"

    @property
    def origin(self) -> str | None:
        """Origin of the tower's weights."""
        return self.tower.origin if self.tower is not None else None

    def forward(self, batch: ClipBatch | FeatureBatch) -> Recognition:
        """Compute logits [B K] of frames uint8 [B T C H W], or of features `frames` float [B T D]."""
        frames = batch.features[FEATURE] if isinstance(batch, FeatureBatch) else self.encode(batch)[FEATURE]
        return Recognition(logits=self.head(frames.mean(dim=1)))

    def encode(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Compute the frozen tower's features of a batch: `frames`, float [B T D], not normalised."""
        assert self.tower is not None, "a probe without a tower takes features"
        return self.tower.features(batch, normalise=self.config.clip_normalisation)

    def tower_weights(self) -> frozenset[str]:
        """Names of the tower's weights."""
        return frozenset(name for name in self.state_dict() if name.startswith("tower."))

    def class_parameters(self) -> frozenset[str]:
        """Names of the head's weights, which have one row per class."""
        return frozenset({"head.weight", "head.bias"})

    def loss(self, out: Recognition, batch: ClipBatch | FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return one group, `head`."""
        return {"head": Group(params=list(self.head.parameters()))}
