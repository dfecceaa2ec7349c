"""Published clip counts per partition and class, for comparison with the counts of a build.

Counted in the annotation files of Zhao & Patras, "Prompting Visual-Language Models for Dynamic Facial Expression
Recognition" (BMVC 2023); the sums agree with the data sets' own papers.
"""

from collections.abc import Mapping, Sequence

# Columns: dfer.emotions.BASIC7, for MAFW dfer.emotions.MAFW11.
TOTALS: dict[str, dict[str, tuple[int, ...]]] = {
    "dfew": {
        "fold_1": (489, 379, 534, 435, 294, 29, 181),
        "fold_2": (489, 379, 534, 435, 294, 29, 181),
        "fold_3": (489, 379, 534, 435, 294, 29, 180),
        "fold_4": (489, 379, 534, 434, 294, 29, 180),
        "fold_5": (489, 378, 533, 434, 293, 29, 180),
    },
    "ferv39k": {
        "test": (1473, 1393, 1958, 1487, 638, 467, 431),
        "train": (5854, 5523, 7790, 5906, 2502, 1833, 1680),
    },
    "mafw": {
        "fold_1": (249, 294, 228, 278, 215, 128, 125, 48, 184, 53, 37),
        "fold_2": (249, 294, 228, 278, 215, 128, 125, 47, 183, 53, 37),
        "fold_3": (248, 294, 228, 278, 214, 128, 125, 47, 183, 52, 36),
        "fold_4": (248, 294, 227, 278, 214, 128, 125, 47, 183, 52, 36),
        "fold_5": (248, 294, 227, 278, 214, 127, 125, 47, 183, 52, 36),
    },
}


def renumbered(dataset: str, counts: Mapping[str, Sequence[int]]) -> str | None:
    """Return a partition whose counts are the published ones in another order of classes, None if there is none.

    Such counts can only come from split files that number the emotions differently.
    """
    for partition, known in TOTALS.get(dataset, {}).items():
        got = tuple(counts.get(partition, ()))
        if got != known and sorted(got) == sorted(known):
            return partition
    return None
