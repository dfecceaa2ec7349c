"""The configuration of reading shards. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.data.mix_config import MixConfig
from dfer.data.recipes import AugmentConfig, CnnAugment, DferClipAugment, ViewsConfig
from dfer.store.cache import Cache
from dfer.store.joined import JoinedStore, joined_classes
from dfer.store.shards import CACHE_GIB, Shards, Store

Sampling = Literal["dfer_clip", "dk_clip", "exp_clip"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How shards are read. shards: folder or fsspec URL. join: further shard folders, whose training clips are added;
    the test clips are those of `shards` (docs/data.md). frames: T, frames per clip (16: DFER-CLIP, section 4.1); 1 for
    stills.

    size: side of a frame in pixels (224: CLIP ViT-B/32). augment: the input recipe, of training and test frames.
    sampling: which frames of a clip are taken, as in the code of DFER-CLIP, DK-CLIP or Exp-CLIP (docs/data.md). views:
    of test clips, none = one. workers: decoding processes of a rank, 0 = decode in the training process.
    canonical_partitions: 1 shuffles all clips; with more, a node reads few shards at a time (docs/data.md). protocol:
    name of the shards' protocol that defines the folds. classes: a label set (`basic7`, `mafw11`, `ck7`, ...) or a list
    of names that selects and orders the shards' classes; none = all classes of the shards.
    cache: folder for shards of remote stores, none = DFER_CACHE or a folder of the user in the temporary folder;
    cache_gib: its largest size. read_ahead: fetch whole shards in the background.
    train_frames: `random` draws one frame from each of T segments anew in every epoch, `middle` takes their middle
    frames as in evaluation. features: folder or URL for stored features of a frozen image tower, which the first run
    that needs them computes, and which are read instead of frames.
    max_bad_share: fraction of the training clips that may be replaced if they cannot be read; with 0, the first such
    clip stops the run. targets: what training aims at, `votes` of the annotators where a clip has any, or its label.
    balance: power p; an epoch takes clips of a class of n in proportion to n^(1 - p), so that 0 takes every clip once
    and 1 takes all classes equally often.
    """

    shards: str = key(path=True, resume="free")
    join: tuple[str, ...] = key((), path=True, resume="free")
    frames: int = 16
    size: int = 224
    workers: int = key(2, resume="free")
    augment: AugmentConfig = field(default_factory=DferClipAugment)
    sampling: Sampling = "dfer_clip"
    views: ViewsConfig | None = None
    canonical_partitions: int = 1
    protocol: str = "published"
    classes: str | tuple[str, ...] | None = None
    cache: str | None = key(None, path=True, resume="free")
    cache_gib: float = key(CACHE_GIB, resume="free")
    read_ahead: bool = key(True, resume="free")
    max_bad_share: float = key(0.0, resume="raised")
    train_frames: Literal["random", "middle"] = "random"
    features: str | None = key(None, path=True, resume="free")
    targets: Literal["labels", "votes"] = "labels"
    balance: float = 0.0
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        for name, low in {"frames": 1, "size": 1, "workers": 0, "canonical_partitions": 1}.items():
            if getattr(self, name) < low:
                raise ConfigProblem(f"{name}: expected at least {low}, got {getattr(self, name)}. Correct it in data")
        if self.shards.startswith("[") and self.shards.endswith("]"):
            first, *more = (word.strip(" '\"") for word in self.shards[1:-1].split(","))
            do = f"Set data.shards={first or 'FOLDER'} and name further sets in data.join=[{','.join(more)}]"
            raise ConfigProblem(f"shards: expected one folder or URL, got the list {self.shards}. {do}")
        if self.cache_gib <= 0:
            raise ConfigProblem(f"cache_gib: expected more than 0, got {self.cache_gib}. Correct it in data")
        if not 0 <= self.max_bad_share < 1:
            got = self.max_bad_share
            raise ConfigProblem(f"max_bad_share: expected a share of the clips, 0 to 1, got {got}. 0.001 is a lot")
        if not 0 <= self.balance <= 1:
            raise ConfigProblem(f"balance: expected 0 to 1, got {self.balance}. 1 takes all classes equally often")
        if self.balance and self.canonical_partitions > 1:
            both = f"{self.balance} with {self.canonical_partitions} partitions, each of which reads every clip once"
            raise ConfigProblem(
                f"balance: expected 0 with canonical_partitions, got {both}. Set one of them to its default"
            )
        self._refuse_impossible_crops()
        if self.features is not None:
            self._refuse_changing_views()

    @property
    def num_views(self) -> int:
        """Views of a test clip."""
        return self.views.rows if self.views is not None else 1

    def _refuse_impossible_crops(self) -> None:
        """Raise ConfigProblem for crops that the recipe does not have, or larger than what they are cut from."""
        shown, crops = self.augment, self.views.crops if self.views is not None else 1
        if crops not in shown.crops:
            expected = " or ".join(map(str, shown.crops))
            do = "3 go with data.augment.name=dk_clip, 10 with cnn"
            raise ConfigProblem(f"views.crops: expected {expected} for the recipe {shown.name}, got {crops}. {do}")
        if isinstance(shown, CnnAugment) and shown.side < self.size:
            expected = f"at most data.augment.side, {shown.side}"
            raise ConfigProblem(f"size: expected {expected}, got {self.size}. The authors cut 44 pixels of 48")

    def _refuse_changing_views(self) -> None:
        """Raise ConfigProblem for keys that do not go with features: these are computed once, so every clip must be
        readable, have one view and be the same in every epoch."""
        shown = self.augment
        keys = {f"augment.{name}": (getattr(shown, name), value) for name, value in shown.still.items()}
        keys |= {"train_frames": (self.train_frames, "middle"), "max_bad_share": (self.max_bad_share, 0)}
        keys |= {"mix.mixup": (self.mix.mixup, 0), "mix.fmix": (self.mix.fmix, 0)}
        wrong = {key: pair for key, pair in keys.items() if pair[0] != pair[1]}
        if wrong:
            got = ", ".join(f"data.{key}={str(was).lower()}" for key, (was, _) in wrong.items())
            do = " ".join(f"data.{key}={str(wanted).lower()}" for key, (_, wanted) in wrong.items())
            expected = "clips that look the same in every epoch"
            raise ConfigProblem(f"features: expected {expected}, got {got}. Set {do}, or leave data.features out")
        if self.num_views > 1:
            got = f"data.views of {self.num_views} views"
            raise ConfigProblem(f"features: expected one view of a clip, got {got}. Leave one of the two out")

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
