"""Write the protocols of a raw set, restricted to the clips that could be packed."""

import hashlib
from collections.abc import Collection, Mapping

from dfer.storage import Folder
from dfer.store.format import Fold, Overlap, Protocol, Subset
from shards.sources.clips import RawFold, RawProtocol, RawSubset


def write_protocols(
    raw: dict[str, RawProtocol],
    out: Folder,
    *,
    partitions: Collection[str],
    keys: Collection[str],
    overlaps: Mapping[str, Overlap],
) -> dict[str, Protocol]:
    """Make the protocols for the manifest, and write their lists of keys. A fold without training or test clips is left
    out, as is a protocol without folds.

    partitions, keys: of the clips that were packed. overlaps: of training and test, by protocol. Raises StorageError.
    """
    found = {}
    for name, protocol in raw.items():
        numbered = {str(number): fold for number, fold in enumerate(protocol.folds, start=1)}
        folds = {number: _fold(fold, out, f"{name}.{number}", partitions, keys) for number, fold in numbered.items()}
        there = {number: fold for number, fold in folds.items() if fold is not None}
        if there:
            found[name] = Protocol(source=protocol.source, folds=there, overlap=overlaps.get(name))
    return found


def _fold(raw: RawFold, out: Folder, name: str, partitions: Collection[str], keys: Collection[str]) -> Fold | None:
    train = _subset(raw.train, out, f"{name}.train", partitions, keys)
    test = _subset(raw.test, out, f"{name}.test", partitions, keys)
    validation = _subset(raw.validation, out, f"{name}.validation", partitions, keys) if raw.validation else None
    return Fold(train=train, test=test, validation=validation) if train and test else None


def _subset(
    raw: RawSubset, out: Folder, name: str, partitions: Collection[str], keys: Collection[str]
) -> Subset | None:
    """Make one subset, and write its list of keys; None if none of its clips was packed."""
    if not raw.keys:
        there = tuple(partition for partition in raw.partitions if partition in partitions)
        return Subset(partitions=there) if there else None
    path, data = f"protocols/{name}.txt", "".join(f"{key}\n" for key in raw.keys if key in keys).encode()
    if data and out.read(path) != data:
        out.write(path, data)
    return Subset(keys=path, sha256=hashlib.sha256(data).hexdigest()) if data else None
