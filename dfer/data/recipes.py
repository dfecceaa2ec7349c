"""Input recipes by name: how frames of training clips and of test clips become the pictures that a model sees.

`AugmentConfig` is their union; the key `name` chooses one, `dfer_clip` if it is left out. Imports no torch.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dfer.config import ConfigProblem, key


@dataclass(frozen=True, kw_only=True)
class DferClipAugment:
    """DFER-CLIP (Zhao & Patras, BMVC 2023, section 4.1 and its code): brightness, rotation, crop out of the stored
    frame, one antialiased resize, flip. Test frames are stretched to the size.

    crop: random resized crop. min_area: smallest fraction of the picture that it keeps. flip: probability of mirroring
    a clip. brightness: b; the factor is drawn from 1 - b .. 1 + b (DFEW 0.5, else 0). rotation: r; degrees are drawn
    from -r .. r (FERV39k 4, else 0). Rotation takes the nearest pixel, as the authors' code does, and is black outside
    the picture.
    """

    still: ClassVar[dict[str, Any]] = {"crop": False, "flip": 0, "brightness": 0, "rotation": 0}
    """Values with which training clips look as test clips do."""
    crops: ClassVar[tuple[int, ...]] = (1,)
    """Numbers of crops that test views may have."""

    name: Literal["dfer_clip"] = key("dfer_clip", unnamed=True)
    crop: bool = True
    min_area: float = 0.08
    flip: float = 0.5
    brightness: float = 0.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        _within(self, {"min_area": (0, 1), "flip": (0, 1), "brightness": (0, 1), "rotation": (0, 180)})

    def words(self) -> list[str]:
        """What training does to a clip, in words."""
        return [
            f"random resized crop of {self.min_area:.0%} to 100 %" if self.crop else "",
            f"flip {self.flip}" if self.flip else "",
            f"brightness 1 +- {self.brightness}" if self.brightness else "",
            f"rotation +- {self.rotation} degrees, nearest pixel" if self.rotation else "",
        ]

    def test_words(self, size: int, crops: int) -> str:
        """How test frames are brought to the size, in words; empty for the whole frame stretched."""
        return ""


@dataclass(frozen=True, kw_only=True)
class DkClipAugment:
    """DK-CLIP (Li et al., ACM MM 2024, its code): short side to 256 for size 224, multi-scale crop, resize, flip,
    colour jitter, grey. Its bilinear filter does not antialias. Test frames: short side to 256, centre crop.

    crop: multi-scale crop; false takes the centre as in the test. flip: probability of mirroring a clip. jitter:
    probability that a clip gets brightness and contrast 1 +- 0.4, saturation 1 +- 0.2, hue +- 0.1, drawn anew for every
    frame. grey: probability that a clip loses its colours.
    """

    still: ClassVar[dict[str, Any]] = {"crop": False, "flip": 0, "jitter": 0, "grey": 0}
    crops: ClassVar[tuple[int, ...]] = (1, 3)

    name: Literal["dk_clip"] = "dk_clip"
    crop: bool = True
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2

    def __post_init__(self) -> None:
        _within(self, {"flip": (0, 1), "jitter": (0, 1), "grey": (0, 1)})

    def words(self) -> list[str]:
        """What training does to a clip, in words."""
        return [
            "multi-scale crop" if self.crop else "",
            f"flip {self.flip}" if self.flip else "",
            f"colour jitter a frame in {self.jitter:.0%} of the clips" if self.jitter else "",
            f"grey {self.grey}" if self.grey else "",
        ]

    def test_words(self, size: int, crops: int) -> str:
        """How test frames are brought to the size, in words."""
        whole = f"short side {size if crops > 1 else short_side(size)} not antialiased"
        return whole if crops > 1 else f"{whole}, centre {size}"


@dataclass(frozen=True, kw_only=True)
class CnnAugment:
    """The CNNs of github WuJie1010/Facial-Expression-Recognition.Pytorch: random crop without padding, flip. Test: the
    centre, or ten crops with `data.views: {crops: 10}`, as published.

    crop: random crop; false takes the centre. flip: probability of mirroring a clip. side: of the frames from which
    `data.size` (44) is cut; others are stretched to it, antialiased.
    """

    still: ClassVar[dict[str, Any]] = {"crop": False, "flip": 0}
    crops: ClassVar[tuple[int, ...]] = (1, 10)

    name: Literal["cnn"] = "cnn"
    crop: bool = True
    flip: float = 0.5
    side: int = 48

    def __post_init__(self) -> None:
        _within(self, {"flip": (0, 1), "side": (1, 4096)})

    def words(self) -> list[str]:
        """What training does to a clip, in words."""
        return [f"random crop out of {self.side}" if self.crop else "", f"flip {self.flip}" if self.flip else ""]

    def test_words(self, size: int, crops: int) -> str:
        """How test frames are brought to the size, in words."""
        return f"{size} of {self.side}" if crops > 1 else f"centre {size} of {self.side}"


@dataclass(frozen=True, kw_only=True)
class ClivpFerAugment:
    """CLIVP-FER (Saadi et al., its code): short side to the size, antialiased, flip, rotation. Test: the short side.
    Of frames that are not square the centre is kept; the authors' code stops on them.

    flip: probability of mirroring a clip. rotation: r; degrees are drawn from -r .. r. Rotation takes the nearest pixel
    and is black outside the picture.
    """

    still: ClassVar[dict[str, Any]] = {"flip": 0, "rotation": 0}
    crops: ClassVar[tuple[int, ...]] = (1,)

    name: Literal["clivp_fer"] = "clivp_fer"
    flip: float = 0.5
    rotation: float = 30.0

    def __post_init__(self) -> None:
        _within(self, {"flip": (0, 1), "rotation": (0, 180)})

    def words(self) -> list[str]:
        """What training does to a clip, in words."""
        return [
            f"flip {self.flip}" if self.flip else "",
            f"rotation +- {self.rotation} degrees, nearest pixel" if self.rotation else "",
        ]

    def test_words(self, size: int, crops: int) -> str:
        """How test frames are brought to the size, in words."""
        return f"short side {size}, centre"


@dataclass(frozen=True, kw_only=True)
class ClipAugment:
    """CLIP's own input (Radford et al., 2021) with the training of CoOp (Zhou et al., 2022): random resized crop, flip.
    Bicubic, antialiased. Test: short side to the size, centre crop.

    crop: random resized crop; false takes the centre. min_area: smallest fraction of the picture that it keeps. flip:
    probability of mirroring a clip.
    """

    still: ClassVar[dict[str, Any]] = {"crop": False, "flip": 0}
    crops: ClassVar[tuple[int, ...]] = (1,)

    name: Literal["clip"] = "clip"
    crop: bool = True
    min_area: float = 0.08
    flip: float = 0.5

    def __post_init__(self) -> None:
        _within(self, {"min_area": (0, 1), "flip": (0, 1)})

    def words(self) -> list[str]:
        """What training does to a clip, in words."""
        return [
            f"random resized crop of {self.min_area:.0%} to 100 %, bicubic" if self.crop else "",
            f"flip {self.flip}" if self.flip else "",
        ]

    def test_words(self, size: int, crops: int) -> str:
        """How test frames are brought to the size, in words."""
        return f"short side {size} bicubic, centre"


AugmentConfig = DferClipAugment | DkClipAugment | CnnAugment | ClivpFerAugment | ClipAugment


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Views of a test clip, whose logits are averaged; training never sees them.

    clips: how often the frames of a clip are sampled, at fixed and evenly spaced places within the segments. crops: of
    every frame: 3 along the long side whose short side is the size (`dk_clip`), 10 of corners and centre, also mirrored
    (`cnn`).
    """

    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ConfigProblem(f"clips: expected at least 1, got {self.clips}. Correct it in data.views")

    @property
    def rows(self) -> int:
        """Views of a clip."""
        return self.clips * self.crops

    def words(self) -> str:
        """The views, in words."""
        clips = f"{self.clips} samplings of the frames x " if self.clips > 1 else ""
        return f"{self.rows} views averaged ({clips}{self.crops} crop{'s' if self.crops > 1 else ''})"


ONE_VIEW = "1 view"


def seen_in_words(augment: AugmentConfig, views: ViewsConfig | None, size: int) -> str:
    """How test clips are seen, in words."""
    words = [ONE_VIEW if views is None else views.words(), augment.test_words(size, views.crops if views else 1)]
    return ", ".join(filter(None, words))


def short_side(size: int) -> int:
    """Short side to which DK-CLIP brings a frame: 256 for a size of 224."""
    return int(256 / 224 * size)


def _within(config: Any, bounds: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigProblem(f"{name}: expected {low} to {high}, got {value}. Correct it in data.augment")
