"""Count how far training and test of a protocol overlap: people, sequences, byte-identical pictures."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dfer.store.format import Overlap
from shards.sources.clips import RawClip, RawProtocol, RawSubset

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The clips that were packed, by key. pictures: hashes of the stills among them."""

    clips: Mapping[str, RawClip]
    pictures: Mapping[str, str]

    def keys(self, subset: RawSubset) -> list[str]:
        """List the keys of a subset that were packed."""
        if subset.keys:
            return [key for key in subset.keys if key in self.clips]
        return [key for key, clip in self.clips.items() if clip.partition in subset.partitions]


def overlap(protocol: RawProtocol, packed: Packed) -> Overlap:
    """Count the overlap of a protocol's folds. Only clips with a label count, since others are left out of a run."""
    folds = [(packed.keys(fold.train), packed.keys(fold.test)) for fold in protocol.folds]
    tests = Counter(key for _, test in folds for key in test)
    seen = {key for train, _ in folds for key in train}
    values = {
        "subjects": {key: clip.subject for key, clip in packed.clips.items()},
        "sources": {key: clip.source for key, clip in packed.clips.items()},
        "pictures": packed.pictures,
    }
    return Overlap(
        tests=tests.total(),
        twice=sum(count > 1 for count in tests.values()),
        never=len(seen - tests.keys()),
        **{name: _shared(folds, of) for name, of in values.items()},
    )


def _shared(folds: Sequence[tuple[Collection[str], Collection[str]]], of: Mapping[str, str | None]) -> int | None:
    """Count the test clips whose value is also that of a training clip of their fold; None if no value is known."""
    if not any(value is not None for value in of.values()):
        return None
    count = 0
    for train, test in folds:
        there = {of.get(key) for key in train} - {None}
        count += sum(of.get(key) in there for key in test)
    return count


def duplicates(pictures: Mapping[str, str]) -> tuple[str, ...]:
    """Make a note of the stills with the same picture as another one; none if there are none."""
    first: dict[str, str] = {}
    pairs = [(key, first[name]) for key, name in sorted(pictures.items()) if first.setdefault(name, key) != key]
    if not pairs:
        return ()
    shown = ", ".join(f"{key} = {other}" for key, other in pairs[:SHOWN]) + (", ..." if len(pairs) > SHOWN else "")
    return (f"{len(pairs)} stills hold the same picture as another one, byte for byte: {shown}",)
