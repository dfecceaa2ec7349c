"""The configuration of reading shards and of augmentation. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.store.cache import Cache
from dfer.store.joined import JoinedStore, joined_classes
from dfer.store.shards import CACHE_GIB, Shards, Store


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Train augmentation, in the order brightness, rotation, crop, flip. Values: DFER-CLIP, section 4.1 and its code.

    crop: random resized crop. min_area: smallest fraction of the picture that it keeps. flip: probability of mirroring
    a clip. brightness: b; the factor is drawn from 1 - b .. 1 + b (DFEW 0.5, else 0). rotation: r; degrees are drawn
    from -r .. r (FERV39k 4, else 0). Rotation takes the nearest pixel, as the authors' code does, and is black outside
    the picture.
    """

    crop: bool = True
    min_area: float = 0.08
    flip: float = 0.5
    brightness: float = 0.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"min_area": (0, 1), "flip": (0, 1), "brightness": (0, 1), "rotation": (0, 180)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigProblem(f"{name}: expected {low} to {high}, got {value}. Correct it in data.augment")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How shards are read. shards: folder or fsspec URL. join: further shard folders, whose training clips are added;
    the test clips are those of `shards` (docs/data.md). frames: T, frames per clip (16: DFER-CLIP, section 4.1).

    size: side of a frame in pixels (224: CLIP ViT-B/32). workers: decoding processes of a rank, 0 = decode in the
    training process. canonical_partitions: 1 shuffles all clips; with more, a node reads few shards at a time
    (docs/data.md). protocol: name of the shards' protocol that defines the folds. classes: `basic7`, `mafw11`, or a
    list of names that selects and orders the shards' classes; none = all classes of the shards.
    cache: folder for shards of remote stores, none = DFER_CACHE or a folder of the user in the temporary folder;
    cache_gib: its largest size. read_ahead: fetch whole shards in the background.
    train_frames: `random` draws one frame from each of T segments anew in every epoch, `middle` takes their middle
    frames as in evaluation. features: folder or URL for stored features of a frozen image tower, which the first run
    that needs them computes, and which are read instead of frames.
    max_bad_share: fraction of the training clips that may be replaced if they cannot be read; with 0, the first such
    clip stops the run.
    """

    shards: str = key(path=True, resume="free")
    join: tuple[str, ...] = key((), path=True, resume="free")
    frames: int = 16
    size: int = 224
    workers: int = key(2, resume="free")
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    canonical_partitions: int = 1
    protocol: str = "published"
    classes: str | tuple[str, ...] | None = None
    cache: str | None = key(None, path=True, resume="free")
    cache_gib: float = key(CACHE_GIB, resume="free")
    read_ahead: bool = key(True, resume="free")
    max_bad_share: float = key(0.0, resume="raised")
    train_frames: Literal["random", "middle"] = "random"
    features: str | None = key(None, path=True, resume="free")

    def __post_init__(self) -> None:
        for name, low in {"frames": 1, "size": 1, "workers": 0, "canonical_partitions": 1}.items():
            if getattr(self, name) < low:
                raise ConfigProblem(f"{name}: expected at least {low}, got {getattr(self, name)}. Correct it in data")
        if self.cache_gib <= 0:
            raise ConfigProblem(f"cache_gib: expected more than 0, got {self.cache_gib}. Correct it in data")
        if not 0 <= self.max_bad_share < 1:
            got = self.max_bad_share
            raise ConfigProblem(f"max_bad_share: expected a share of the clips, 0 to 1, got {got}. 0.001 is a lot")

        if self.features is not None:
            self._refuse_changing_views()

    def _refuse_changing_views(self) -> None:
        """Raise ConfigProblem for keys that do not go with features: these are computed once, so every clip must be
        readable and the same in every epoch."""
        shown = self.augment
        keys = {
            "augment.crop": (shown.crop, False),
            "augment.flip": (shown.flip, 0),
            "augment.brightness": (shown.brightness, 0),
            "augment.rotation": (shown.rotation, 0),
            "train_frames": (self.train_frames, "middle"),
            "max_bad_share": (self.max_bad_share, 0),
        }
        wrong = {key: pair for key, pair in keys.items() if pair[0] != pair[1]}
        if wrong:
            got = ", ".join(f"data.{key}={str(was).lower()}" for key, (was, _) in wrong.items())
            do = " ".join(f"data.{key}={str(wanted).lower()}" for key, (_, wanted) in wrong.items())
            expected = "clips that look the same in every epoch"
            raise ConfigProblem(f"features: expected {expected}, got {got}. Set {do}, or leave data.features out")

    def store(self) -> Shards:
        """Open the shards, those of several folders as one. Raises DataError, StorageError, UsageError and, if the sets
        have different classes of which none are chosen, ConfigProblem."""
        if not self.join:
            return self.tested_store()
        stores = [self.tested_store(), *(Store(url, cache=self._cache()) for url in self.join)]
        every = joined_classes([store.manifest for store in stores])
        if self.classes is None and any(len(store.manifest.classes) < len(every) for store in stores):
            listed = "; ".join(f"{store.manifest.dataset}: {', '.join(store.manifest.classes)}" for store in stores)
            do = "Write data.classes=[...] with the classes that you want"
            raise ConfigProblem(f"data.classes: expected the names of classes, since the sets differ ({listed}). {do}")
        return JoinedStore(stores)

    def tested_store(self) -> Store:
        """Open the shards of the test clips alone. Raises DataError, StorageError, UsageError."""
        return Store(self.shards, cache=self._cache())

    def _cache(self) -> Cache:
        return Cache(self.cache, budget=int(self.cache_gib * 2**30))
