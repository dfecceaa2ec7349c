"""Folds of stills: blocks of positions, as releases cut them, and folds that share no person."""

from collections.abc import Mapping, Sequence

from shards.sources.clips import RawClip, RawFold, RawProtocol, RawSubset

FOLDS = 10
TestSizes = Mapping[tuple[int, ...], tuple[int, ...]]
"""Clips of the classes, in an order -> test clips a fold of each."""
POSITIONAL, SUBJECTS = "positional", "subjects"


def positional(
    clips: Sequence[RawClip], order: Sequence[int], *, tests: TestSizes, source: str
) -> dict[str, RawProtocol]:
    """Make the protocol `positional`: ten folds that test on blocks of positions, and train on all other clips.

    The clips are laid end to end: the classes in `order`, in each class the clips by key. For a class that begins at
    position b, ends before e and has t test clips, fold k tests on the t positions from b + (k - 1) t on, and fold 10
    on the last t before e. So a clip may be tested twice or never, and a block may reach into the next class, as in
    the releases.

    order: labels. tests: numbers of clips of the classes in that order -> test clips a fold of each; other numbers of
    clips get a tenth each. Returns no protocol if a class has fewer than ten clips.
    """
    classes = [sorted(clip.key for clip in clips if clip.label == label) for label in order]
    counts = tuple(map(len, classes))
    sizes = tests.get(counts, tuple(count // FOLDS for count in counts))
    if not clips or min(sizes) < 1:
        return {}
    keys = [key for members in classes for key in members]
    folds = []
    for fold in range(1, FOLDS + 1):
        chosen = {keys[position] for position in _positions(counts, sizes, fold)}
        rest = tuple(key for key in keys if key not in chosen)
        test = tuple(key for key in keys if key in chosen)
        folds.append(RawFold(train=RawSubset(keys=rest), test=RawSubset(keys=test)))
    return {POSITIONAL: RawProtocol(source=source, folds=tuple(folds))}


def _positions(counts: Sequence[int], sizes: Sequence[int], fold: int) -> list[int]:
    found: list[int] = []
    begin = 0
    for count, size in zip(counts, sizes, strict=True):
        first = begin + count - size if fold == FOLDS else begin + (fold - 1) * size
        found += range(first, first + size)
        begin += count
    return found


def by_subject(clips: Sequence[RawClip], *, source: str) -> dict[str, RawProtocol]:
    """Make the protocol `subjects`: fold k of ten tests on every tenth person from the k-th on, in the order of their
    names, and trains on the others. Of fewer than ten people each is a fold; of fewer than two there is no protocol."""
    people = sorted({clip.subject for clip in clips if clip.subject is not None})
    count = min(FOLDS, len(people))
    home = {name: number % count for number, name in enumerate(people)}
    members = [[clip for clip in clips if clip.subject is not None and home[clip.subject] == k] for k in range(count)]
    if count < 2:
        return {}
    folds = tuple(
        RawFold(train=_keys([clip for other in members if other is not test for clip in other]), test=_keys(test))
        for test in members
    )
    return {SUBJECTS: RawProtocol(source=source, folds=folds)}


def _keys(clips: Sequence[RawClip]) -> RawSubset:
    return RawSubset(keys=tuple(sorted(clip.key for clip in clips)))
