"""Several shard folders as one, to train on several data sets at a time.

The first folder gives the test clips, their keys and the numbers of the folds. Of the others only training clips are
added: those of the fold of the same number, or of their only fold, of the protocol of the same name. A set that lacks
it, and trains on the same clips in all its folds, adds these. Keys, partitions and subjects of the others begin with
the name of their data set. Classes are matched by name. The joined manifest holds the hashes of all shards, so that its
own hash is one over all folders.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dfer.emotions import canonical_name
from dfer.errors import UsageError, message
from dfer.store.cached_shard import CachedShard
from dfer.store.chunks import Bytes, Span
from dfer.store.format import Excluded, Fold, Manifest, Protocol, ShardInfo, Subset, read_keys
from dfer.store.index import NO_LABEL, ShardIndex
from dfer.store.remote import Pending
from dfer.store.shards import Store

JOINED = "joined"
"""Option of a joined manifest: the names of the data sets, the first one first."""
LISTS = "joined"
"""Folder of key lists that exist in memory only."""


class JoinedStore:
    """Shard folders read as one. Has the interface `dfer.store.shards.Shards`.

    Raises:
        UsageError: a data set is given twice, or some folders are on disks and others in remote stores.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        _refuse(stores)
        self._stores = tuple(stores)
        self.url = " + ".join(store.url for store in stores)
        self.cache = stores[0].cache
        self._files: dict[str, bytes] = {}
        self._owner: dict[str, tuple[int, ShardInfo]] = {}
        self._classes = joined_classes([store.manifest for store in stores])
        self.manifest = self._manifest()

    @property
    def stores(self) -> tuple[Store, ...]:
        """The folders one by one, that of the test clips first."""
        return self._stores

    @property
    def is_local(self) -> bool:
        """Whether the shards are on a local file system."""
        return self._stores[0].is_local

    @property
    def fetched(self) -> int:
        """Bytes of shards that this process has fetched from remote stores."""
        return sum(store.fetched for store in self._stores)

    def indexes(self, shards: Sequence[ShardInfo]) -> list[ShardIndex]:
        """Read the indexes of several shards. Raises DataError, StorageError."""
        found: dict[str, ShardIndex] = {}
        for number, store in enumerate(self._stores):
            mine = [shard for shard in shards if self._owner[shard.path][0] == number]
            read = store.indexes([self._owner[shard.path][1] for shard in mine])
            found |= {shard.path: self._index(number, index) for shard, index in zip(mine, read)}
        return [found[shard.path] for shard in shards]

    def file(self, path: str) -> bytes:
        """A small file beside the manifest, or a list of keys of several folders. Raises DataError, StorageError."""
        return self._files[path] if path in self._files else self._stores[0].file(path)

    def prefetch(self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "") -> Pending | None:
        """As `Store.prefetch`."""
        number, own = self._owner[shard.path]
        return self._stores[number].prefetch(own, spans, where=where)

    def read(
        self, shard: ShardInfo, spans: Sequence[Span], *, where: str = "", pending: Pending | None = None
    ) -> list[Bytes]:
        """As `Store.read`."""
        number, own = self._owner[shard.path]
        return self._stores[number].read(own, spans, where=where, pending=pending)

    def complete(self, file: CachedShard, shard: ShardInfo, first: int, last: int) -> None:
        """As `Store.complete`."""
        number, own = self._owner[shard.path]
        self._stores[number].complete(file, own, first, last)

    def check_unchanged(self, *, trust_stamp: bool = True) -> None:
        """Raise DataError when a manifest was replaced since the folders were opened."""
        for store in self._stores:
            store.check_unchanged(trust_stamp=trust_stamp)

    # --- what is renamed

    def _name(self, number: int, name: str, mark: str) -> str:
        """Return a name in the joined store. mark: between the data set and the name."""
        return name if number == 0 else f"{self._stores[number].manifest.dataset}{mark}{name}"

    def _classes_of(self, number: int) -> list[int]:
        """Return the joined number of every class of a folder."""
        return [self._classes.index(canonical_name(name)) for name in self._stores[number].manifest.classes]

    def _index(self, number: int, index: ShardIndex) -> ShardIndex:
        to_class = np.array([*self._classes_of(number), NO_LABEL], np.int64)  # NO_LABEL (-1) indexes the last entry
        votes = None
        if index.votes is not None:
            votes = np.zeros((len(index), len(self._classes)))
            votes[:, to_class[:-1]] = index.votes
            votes[np.isnan(index.votes).any(1)] = np.nan
        words = dict(index.words)
        if "subject" in words:
            words["subject"] = [each and self._name(number, each, "/") for each in words["subject"]]
        keys = [self._name(number, key, "/") for key in index.keys]
        return replace(index, keys=keys, labels=to_class[index.labels], words=words, votes=votes)

    # --- the joined manifest

    def _manifest(self) -> Manifest:
        manifests = [store.manifest for store in self._stores]
        for number, manifest in enumerate(manifests):
            self._owner |= {self._name(number, shard.path, "/"): (number, shard) for shard in manifest.shards}
        shards = tuple(
            replace(own, path=path, partition=self._name(number, own.partition, "_"))
            for path, (number, own) in self._owner.items()
        )
        counts = {
            self._name(number, partition, "_"): self._counts(number, row)
            for number, manifest in enumerate(manifests)
            for partition, row in manifest.counts.items()
        }
        excluded = [
            Excluded(key=self._name(number, each.key, "/"), reason=each.reason)
            for number, manifest in enumerate(manifests)
            for each in manifest.excluded
        ]
        generated = ", ".join(f"{each.dataset}: {each.generated}" for each in manifests if each.generated)
        options = {
            JOINED: ", ".join(each.dataset for each in manifests),
            **({"generated": generated} if generated else {}),
        }
        return replace(
            manifests[0],
            classes=tuple(self._classes),
            counts=counts,
            shards=shards,
            protocols=self._protocols(),
            excluded=tuple(excluded),
            options={**manifests[0].options, **options},
        )

    def _counts(self, number: int, row: Sequence[int]) -> tuple[int, ...]:
        found = [0] * len(self._classes)
        for place, count in zip(self._classes_of(number), row, strict=True):
            found[place] = count
        return tuple(found)

    def _protocols(self) -> dict[str, Protocol]:
        """Join the folds of the first folder's protocols; those that another folder lacks are left out."""
        found = {}
        for name, protocol in self._stores[0].manifest.protocols.items():
            folds = {}
            for fold, own in protocol.folds.items():
                others = [fold_of_number(store.manifest, name, fold) for store in self._stores[1:]]
                if all(other is not None for other in others):
                    trains = [own.train, *(other.train for other in others if other is not None)]
                    folds[fold] = replace(own, train=self._train(f"{name}.{fold}", trains))
            if folds:
                found[name] = Protocol(source=protocol.source, folds=folds)
        if not found:
            _refuse_apart([store.manifest for store in self._stores])
        return found

    def _train(self, name: str, trains: Sequence[Subset]) -> Subset:
        """Join what trains: partitions where all folders name partitions, else a list of keys."""
        if all(subset.partitions for subset in trains):
            names = [self._name(k, each, "_") for k, subset in enumerate(trains) for each in subset.partitions]
            return Subset(partitions=tuple(names))
        keys = [self._name(k, key, "/") for k, subset in enumerate(trains) for key in _keys(self._stores[k], subset)]
        data, path = "".join(f"{key}\n" for key in keys).encode(), f"{LISTS}/{name}.train.txt"
        self._files[path] = data
        return Subset(keys=path, sha256=hashlib.sha256(data).hexdigest())


def _keys(store: Store, subset: Subset) -> list[str]:
    if subset.keys:
        return read_keys(store.file(subset.keys), sha256=subset.sha256, where=f"{store.url}/{subset.keys}")
    return [key for index in store.indexes(store.manifest.shards_of(subset.partitions)) for key in index.keys]


def fold_of_number(manifest: Manifest, protocol: str, number: str) -> Fold | None:
    """Return the fold of a further folder that goes with a number: the same, or the only one; None if there is none."""
    name = protocol_of(manifest, protocol)
    own = number_of(manifest, name, number)
    return manifest.protocols[name].folds[own] if own is not None else None


def protocol_of(manifest: Manifest, protocol: str) -> str:
    """Return the protocol of a further folder that goes with a protocol: that of the same name or, of a folder that
    lacks it and trains on the same clips in all its folds, its first one by name."""
    trains = {fold.train for each in manifest.protocols.values() for fold in each.folds.values()}
    single = all(len(each.folds) == 1 for each in manifest.protocols.values())
    if protocol in manifest.protocols or len(trains) != 1 or not single:
        return protocol
    return min(manifest.protocols)


def number_of(manifest: Manifest, protocol: str, number: str) -> str | None:
    """Return the number of a folder's fold that goes with a number: the same, or that of the only one; None if there is
    none."""
    found = manifest.protocols.get(protocol)
    folds = found.folds if found is not None else {}
    if number in folds:
        return number
    return next(iter(folds)) if len(folds) == 1 else None


def joined_classes(manifests: Sequence[Manifest]) -> list[str]:
    """Return the classes of all manifests by name, in the order of their first mention."""
    return list(dict.fromkeys(canonical_name(name) for manifest in manifests for name in manifest.classes))


def _refuse_apart(manifests: Sequence[Manifest]) -> None:
    """Raise UsageError that names the protocols and folds of every set."""
    told = []
    for manifest in manifests:
        counts = {name: len(each.folds) for name, each in sorted(manifest.protocols.items())}
        listed = ", ".join(f"{name} of {count} fold{'s' if count > 1 else ''}" for name, count in counts.items())
        told.append(f"{manifest.dataset}: {listed or 'none'}")
    expected = "a protocol of the first set that every other set has, or other sets with one choice of training clips"
    do = (
        "Leave out of data.join the sets that lack the protocol, or give the one with several protocols as data.shards."
    )
    raise UsageError(message("data.join", expected=expected, got="; ".join(told), do=do))


def _refuse(stores: Sequence[Store]) -> None:
    names = [store.manifest.dataset for store in stores]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        do = "Leave one of its folders out of data.shards and data.join."
        raise UsageError(message("data.join", expected="every data set once", got=f"{twice} twice", do=do))
    if len({store.is_local for store in stores}) > 1:
        got = ", ".join(f"{store.url} {'on a disk' if store.is_local else 'remote'}" for store in stores)
        do = "Copy some, so that the cache holds all or none."
        raise UsageError(message("data.join", expected="all shards on disks, or all remote", got=got, do=do))
