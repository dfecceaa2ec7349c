"""The configuration of every method. `ModelConfig` is their union; the key `name` chooses one. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.models.foreign.architecture import LIMITS
from dfer.models.texts import check_kind


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


ContextPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True, kw_only=True)
class DferClipConfig:
    """DFER-CLIP and its ablations (tables 1, 2, 4 and 5 of the paper); the defaults are the published model.

    towers: which CLIP. released: path of a checkpoint that the authors' code wrote; it fills the whole model.
    start: folder (also s3://...) of a run from whose selected checkpoint the initial weights are taken: parameters of
        equal name and shape, and the contexts of classes by class name. In the folder of a cross-validation, the same
        fold is used.
    text: the fixed part of a class's prompt: class_names, class_names_with_context, photo, class_descriptor, or the
        path of a YAML file with a line `class: text` for every class. num_contexts: number of learnable vectors next to
        the text (0, 4, 8, 16 in the paper).
    context_position: where the text stands: `end` after the contexts, `front` before them, `middle` between them.
    shared_contexts: one set of contexts for all classes instead of one each.
    temporal: the temporal model; depth 0 averages the frames.
    train_image: whether the image tower is trained; the text tower never is.
    temperature: divides the cosine similarity; CLIP's own scale is not used.
    """

    name: Literal["dfer_clip"] = "dfer_clip"
    towers: TowersConfig = field(default_factory=TowersConfig)
    released: str | None = key(None, file=True)
    start: str | None = key(None, path=True)
    text: str = key("class_descriptor", file=True)
    num_contexts: int = 8
    context_position: ContextPosition = "end"
    shared_contexts: bool = False
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    train_image: bool = True
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.released is not None and self.start is not None:
            raise ConfigProblem("released, start: expected one of them, got both. Set one to null.")
        check_kind(self.text)
        if self.num_contexts < 0:
            raise ConfigProblem(f"num_contexts: expected 0 or more, got {self.num_contexts}.")
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. The paper's is 0.01.")
        if not (self.num_contexts or self.temporal.depth or self.train_image):
            raise ConfigProblem(
                "num_contexts, temporal.depth, train_image: with 0, 0 and false nothing is left to train. "
                "Turn one of them on."
            )

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """A linear classifier on the mean frame feature of a frozen image tower (Radford et al., 2021, section 3.2).

    towers: which CLIP; its text tower is not used. start: run whose weights are the initial ones. clip_normalisation:
    normalise frames with CLIP's mean and deviation, as in CLIP's training, instead of only scaling them to 0..1.
    """

    name: Literal["linear_probe"] = "linear_probe"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    clip_normalisation: bool = True

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames (`data.features`)."""
        return FrozenTower(towers=self.towers, clip_normalisation=self.clip_normalisation)


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """A linear map from a student's features to a teacher's. temperature: divides the cosine similarity; Exp-CLIP uses
    0.01, the inverse of CLIP's logit scale."""

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. Exp-CLIP's is 0.01.")


MAX_WIDTH = 1024
"""Most channels of a CNN's first stage."""
Caption = Literal["zero_shot", "all", "true_label"]


@dataclass(frozen=True, kw_only=True)
class ClivpFerConfig:
    """CLIVP-FER (Saadi et al.): a small classifier on the features of a frozen CLIP. The defaults are those of the
    released code, except for the caption.

    towers: which CLIP. start: run whose weights are the initial ones.
    mode: 1 classifies the image feature beside the feature of a caption, 0 the image feature alone.
    caption: which caption a picture gets in mode 1, in training and in the test alike. zero_shot: that of the class
        which the frozen CLIP itself predicts; all: the mean of all captions, weighted by the probabilities of that
        prediction; true_label: that of the true class, as published. The last one gives the classifier the answer, so
        every result with it is marked LEAKS LABEL.
    text: the captions: `clivp_fer`, which covers the six classes of KMU-FED and neutral, or the path of a YAML file
        with a line `class: text` for every class.
    pooling: of the image feature in mode 0. none: as it is; released: averaged in groups of four, as in mode 1. The
        released code for mode 0 does not run, so it is not known which the paper used.
    dropout: share of the hidden units that are dropped in training.
    """

    name: Literal["clivp_fer"] = "clivp_fer"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    mode: Literal[0, 1] = 1
    caption: Caption = "zero_shot"
    text: str = key("clivp_fer", file=True)
    pooling: Literal["none", "released"] | None = None
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_kind(self.text)
        _check_dropout(self.dropout)
        if self.mode == 1 and self.pooling is not None:
            raise ConfigProblem(f"pooling: expected null in mode 1, got {self.pooling}. It is a choice of mode 0.")
        if self.mode == 0 and self.caption != "zero_shot":
            do = "Mode 0 has no caption: leave it out, or set mode=1."
            raise ConfigProblem(f"caption: expected zero_shot, the default, in mode 0, got {self.caption}. {do}")

    @property
    def leaks_label(self) -> bool:
        """Whether an answer depends on the true label of its clip."""
        return self.mode == 1 and self.caption == "true_label"

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames."""
        return FrozenTower(towers=self.towers, clip_normalisation=False, imagenet=True)


@dataclass(frozen=True, kw_only=True)
class CnnConfig:
    """A convolutional network that is trained from random weights on small pictures, 44 px as published.

    net: vgg19 or resnet18, in the forms of github WuJie1010/Facial-Expression-Recognition.Pytorch. width: channels of
    the first stage, of which the others have multiples; 64 as published. start: run whose weights are the initial ones.
    dropout: share of the features that are dropped before the last layer in training.
    """

    name: Literal["cnn"] = "cnn"
    net: Literal["vgg19", "resnet18"] = "resnet18"
    width: int = 64
    start: str | None = key(None, path=True)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _check_dropout(self.dropout)
        if not 1 <= self.width <= MAX_WIDTH:
            raise ConfigProblem(f"width: expected 1 to {MAX_WIDTH}, got {self.width}. The published one is 64.")

    @property
    def towers(self) -> None:
        """None: there is no CLIP in it."""

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


def _check_dropout(share: float) -> None:
    if not 0 <= share < 1:
        raise ConfigProblem(f"dropout: expected a share from 0 to below 1, got {share}. The published one is 0.5.")


ModelConfig = DferClipConfig | LinearProbeConfig | ClivpFerConfig | CnnConfig
"""Every method's configuration; which one is chosen by its `name`."""
