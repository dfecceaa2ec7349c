"""Check, before anything is built, that the format can hold a raw set; problems are reported as the source's errors."""

from collections import Counter
from collections.abc import Iterator

from dfer.errors import DataError, message
from dfer.store.format import KEY, MAX_CLASSES, MAX_TEXT, PARTITION
from dfer.store.index import MAX_NUMBER, WORDS
from shards.sources.clips import RawClip, RawSet, RawSubset


def check_raw(raw: RawSet) -> None:
    """Raise DataError for a clip, a class or a protocol that the format cannot hold."""
    for expected, got in _faults(raw):
        do = "Correct the source of the data set in shards/sources."
        raise DataError(message(f"raw set {raw.dataset}", expected=expected, got=got, do=do))


def _faults(raw: RawSet) -> Iterator[tuple[str, str]]:
    """Yield the problems of a raw set as (expected, got)."""
    if not raw.clips:
        yield "at least one clip", "none"
    if len(raw.emotions) > MAX_CLASSES:
        yield f"at most {MAX_CLASSES:,} classes", str(len(raw.emotions))
    keys = Counter(clip.key for clip in raw.clips)
    yield from (("every clip once", f"{key} {count} times") for key, count in keys.items() if count > 1)
    for clip in raw.clips:
        yield from ((expected, f"{got} for {clip.key[:80]}") for expected, got in _clip_faults(clip, len(raw.emotions)))
    partitions = {clip.partition for clip in raw.clips}
    for name, protocol in raw.protocols.items():
        if not PARTITION.fullmatch(name):
            yield "plain names of protocols", repr(name)
        for number, fold in enumerate(protocol.folds, start=1):
            for subset in filter(None, (fold.train, fold.test, fold.validation)):
                odd = _unknown(subset, partitions, keys)
                if odd:
                    yield f"known partitions or keys in fold {number} of {name}", odd


def _clip_faults(clip: RawClip, classes: int) -> Iterator[tuple[str, str]]:
    if not KEY.fullmatch(clip.key):
        yield "keys of up to four parts of 1 to 40 letters, digits, _ or -", repr(clip.key[:80])
    if not PARTITION.fullmatch(clip.partition):
        yield "plain names of partitions", repr(clip.partition)
    if clip.label is not None and not 0 <= clip.label < classes:
        yield f"a label in 0..{classes - 1}", str(clip.label)
    if clip.votes is not None and (len(clip.votes) != classes or not all(0 <= n <= MAX_NUMBER for n in clip.votes)):
        yield f"a number of votes for each of {classes} classes", str(clip.votes)[:80]
    if clip.faces is not None and not all(abs(number) <= MAX_NUMBER for box in clip.faces for number in box):
        yield "face boxes in pixels", str(clip.faces)[:80]
    for name in WORDS:
        value = getattr(clip, name)
        if value is not None and len(value) > MAX_TEXT:
            yield f"a {name} of at most {MAX_TEXT:,} letters", str(len(value))


def _unknown(subset: RawSubset, partitions: set[str], keys: Counter[str]) -> str:
    """Describe the problem of a subset; empty if there is none."""
    if bool(subset.partitions) == bool(subset.keys):
        return "both" if subset.keys else "neither"
    odd = [name for name in subset.partitions if name not in partitions] + [
        key for key in subset.keys if key not in keys
    ]
    return odd[0] if odd else "one of them twice" if len(set(subset.keys)) < len(subset.keys) else ""
