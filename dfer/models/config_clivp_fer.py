"""The configuration of CLIVP-FER and of the CNNs it is compared with. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.errors import message
from dfer.models.config_towers import FrozenTower, TowersConfig
from dfer.models.texts import check_kind

MAX_WIDTH = 1024
"""Most channels of a CNN's first stage."""
SIDES = range(32, 57)
"""Sides in pixels of pictures whose last map is one cell in both CNNs."""
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


def check_side(side: int) -> None:
    """Raise ConfigProblem unless both CNNs take pictures with this side, in pixels."""
    if side not in SIDES:
        expected, do = f"{SIDES[0]} to {SIDES[-1]} pixels with model.name=cnn", "Set data.size=44, as published."
        raise ConfigProblem(message("data.size", expected=expected, got=str(side), do=do))
