"""The configuration of the parts that several methods have: towers and temporal model. Imports no torch."""

from dataclasses import dataclass

from dfer.config import ConfigProblem, key
from dfer.models.foreign.architecture import LIMITS


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Which CLIP.

    arch: a name of open_clip (`ViT-B-32-quickgelu`), one of the small ones shipped here (`tiny-vit-64`), or the path of
        a JSON file in open_clip's layout. OpenAI's weights need the `-quickgelu` names; others are refused.
    pretrained: path of a local checkpoint in OpenAI's or open_clip's layout, or one of open_clip's tags for this
        architecture (`openai`), which open_clip downloads once; null draws random weights. The weights must have been
        trained with the activation of `arch`. This can only be checked for OpenAI's files, for tags, and for a file
        with an open_clip_config.json beside it.
    image_size: pixels; null is the architecture's own. For another size, a checkpoint's position embeddings are
        interpolated.
    """

    arch: str = key("ViT-B-32-quickgelu", file=True)
    pretrained: str | None = key(None, file=True)
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ConfigProblem(f"image_size: expected at least 1 pixel, got {self.image_size}. Leave it out.")
        if self.image_size is not None and self.image_size > LIMITS["image_size"]:
            most = LIMITS["image_size"]
            raise ConfigProblem(f"image_size: expected at most {most} pixels, got {self.image_size}. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Size of the temporal model; the defaults are the paper's.

    depth: transformer layers; 0 averages the frame features and has no parameters. heads, head_dim: number and width of
    attention heads. mlp_dim: hidden width of the feed-forward part. init_std: standard deviation of the initial class
    token and position embeddings. The paper's 1 is small compared with CLIP's features, but much larger than the
    features of a tower with random weights.
    """

    depth: int = 1
    heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    init_std: float = 1.0

    def __post_init__(self) -> None:
        if self.depth < 0 or min(self.heads, self.head_dim, self.mlp_dim) < 1:
            raise ConfigProblem("temporal: depth may not be negative, heads, head_dim and mlp_dim are at least 1.")
        if self.init_std <= 0:
            raise ConfigProblem(f"temporal.init_std: expected more than 0, got {self.init_std}. The paper's is 1.0.")


@dataclass(frozen=True, kw_only=True)
class FrozenTower:
    """The configuration of an image tower that is not trained: all that its features of given frames depend on.

    clip_normalisation: frames are normalised by CLIP's mean and deviation; imagenet: by ImageNet's instead.
    """

    towers: TowersConfig
    clip_normalisation: bool
    imagenet: bool = False

    @property
    def normalisation(self) -> str:
        """What stored features say of the frames' normalisation."""
        return "imagenet" if self.imagenet else "clip" if self.clip_normalisation else "none"
