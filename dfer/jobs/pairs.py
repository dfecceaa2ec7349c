"""What a projection head is fitted to: pairs of features, a student's (CLIP's image tower) and a teacher's, of the same
unlabelled pictures. Imports no torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.models.config_towers import TowersConfig
from dfer.store.cache import Cache
from dfer.store.shards import CACHE_GIB
from dfer.teacher.config import Blip2TeacherConfig, TeacherConfig

Stored = Literal["as_computed", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Pictures, and the two frozen models that see them.

    shards, pictures: folder or URL of shards, or a folder of pictures (also in folders below it); one of the two, or
    neither for a fit to the stored pairs that `features` names. Of a clip, the middle frame is taken. Labels are not
    read. partitions: of the shards, none = all. size: pixels to which pictures are resized without keeping their
    proportions (224: Exp-CLIP). towers: the CLIP whose image tower is the student; clip_normalisation: whether its
    frames are normalised (Exp-CLIP: no). teacher: the teacher. batch: most pictures of one forward pass, at most 256
    and a sixteenth of all; a part of what the features depend on, to the last bit. precision: of the student's forward
    pass. stored: number format of stored features. features: folder or URL below which features are stored; for a fit
    also that of one set of pairs, FOLDER/KEY, which needs neither its pictures nor its models. workers: decoding
    processes. cache, cache_gib: as in DataConfig.
    """

    shards: str | None = key(None, path=True, resume="free")
    pictures: str | None = key(None, path=True, resume="free")
    partitions: tuple[str, ...] = ()
    size: int = 224
    towers: TowersConfig = field(default_factory=TowersConfig)
    clip_normalisation: bool = False
    teacher: TeacherConfig = field(default_factory=Blip2TeacherConfig)
    batch: int = 64
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    stored: Stored = "as_computed"
    features: str = key(path=True, resume="free")
    workers: int = key(2, resume="free")
    cache: str | None = key(None, path=True, resume="free")
    cache_gib: float = key(CACHE_GIB, resume="free")

    def __post_init__(self) -> None:
        if self.shards is not None and self.pictures is not None:
            raise ConfigProblem("pairs: expected shards or pictures, got both. Set pairs.pictures=null, for example")
        if self.pictures is not None and self.partitions:
            raise ConfigProblem(
                "partitions: expected none with pictures, which have no partitions, got "
                f"{', '.join(self.partitions)}. Leave them out"
            )
        for name, low in {"size": 1, "batch": 1, "workers": 0}.items():
            if getattr(self, name) < low:
                raise ConfigProblem(f"{name}: expected at least {low}, got {getattr(self, name)}. Correct it in pairs")

    @property
    def source(self) -> str:
        """Path or URL of the pictures; of the stored pairs, if no pictures are named."""
        return self.shards or self.pictures or self.features

    def store_cache(self) -> Cache:
        """The cache of remote shards."""
        return Cache(self.cache, budget=int(self.cache_gib * 2**30))
