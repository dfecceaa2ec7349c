"""Whether the result of a data set still stands: the configuration, the source of its clips and the files of all towers
are those of which it was made. Imports no torch, except to list a folder of pictures.
"""

from functools import cache
from pathlib import Path

from dfer.errors import DataError
from dfer.jobs.zeroshot_config import ZeroshotConfig, ZeroshotSet, asked
from dfer.local_files import sha256_of
from dfer.models.config_towers import TowersConfig
from dfer.models.files import is_tag
from dfer.report.zeroshot import SetResult, read_result
from dfer.storage import Folder
from dfer.store.cache import Cache
from dfer.store.format import manifest_sha256
from dfer.store.shards import Store


def standing_result(config: ZeroshotConfig, name: str, run: str) -> SetResult | None:
    """Return the result of a data set, if it stands. run: folder of the part. Raises CheckpointError, StorageError."""
    found = read_result(Folder(run, what="run"))
    if found is None or found.asked != asked(config, name):
        return None
    models = {model.name: model for model in found.models}
    if not all(_stand(each.towers, models[model].files) for model, each in config.models.items()):
        return None
    return found if found.sha256 == source_sha256(config.sets[name], config.store_cache()) else None


def source_sha256(own: ZeroshotSet, cache: Cache) -> str:
    """SHA-256 of the manifest of shards, or of names and sizes of pictures; empty if they cannot be read.

    Raises:
        StorageError: the store does not answer.
    """
    try:
        if own.pictures is not None:
            from dfer.data.pictures import PictureFolder  # not at the top: it imports torch

            return PictureFolder.open(Path(own.pictures)).sha256
        return manifest_sha256(Store(str(own.shards), cache=cache).manifest)
    except DataError:
        return ""


def _stand(towers: TowersConfig, files: dict[str, str]) -> bool:
    """Whether the files of towers are those with these SHA-256, by key. One that is gone changes nothing."""
    paths = {"arch": towers.arch if towers.arch.endswith(".json") else None, "pretrained": towers.pretrained}
    if towers.pretrained is not None and is_tag(towers.arch, towers.pretrained):
        del paths["pretrained"]
    there = {key: Path(path) for key, path in paths.items() if path is not None and Path(path).is_file()}
    return all(_sha256(path) == files.get(key) for key, path in there.items())


def _sha256(path: Path) -> str:
    there = path.stat()
    return _sha256_of(path, there.st_mtime_ns, there.st_size)


@cache
def _sha256_of(path: Path, _mtime_ns: int, _size: int) -> str:
    """SHA-256 of a file, computed once in this process: several models have the same weights."""
    return sha256_of(path)
