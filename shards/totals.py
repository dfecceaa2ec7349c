"""Published clip counts per partition and class, for comparison with the counts of a build.

DFEW, FERV39k, MAFW: counted in the annotation files of Zhao & Patras, "Prompting Visual-Language Models for Dynamic
Facial Expression Recognition" (BMVC 2023); the sums agree with the data sets' own papers. AFEW: the challenge's counts,
as albanie/mcnDatasets has them. RAF-DB, FER2013: as several loaders have them; the sums are the published ones.
AffectNet: manually annotated pictures, validation of 500 a class. CK+: three pictures of each of 327 sequences
(WuJie1010, preprocess_CK+.py). KMU-FED: derived; an audit counted 1,100 pictures without six copies, which are ten
times the test blocks of CLIVP-FER.
"""

from collections.abc import Mapping, Sequence

CK = (207, 84, 135, 249, 177, 75, 54)
# Columns: the set's classes in `dfer.emotions`: BASIC7, MAFW11, BASIC8 (AffectNet), CK7, BASIC6 (KMU-FED).
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
    "afew": {
        "train": (150, 117, 144, 133, 74, 74, 81),
        "val": (63, 61, 63, 64, 46, 40, 46),
    },
    "raf_db": {
        "test": (1185, 478, 680, 162, 329, 160, 74),
        "train": (4772, 1982, 2524, 705, 1290, 717, 281),
    },
    "affectnet": {
        "train": (134415, 25459, 74874, 24882, 14090, 3803, 6378, 3750),
        "val": (500, 500, 500, 500, 500, 500, 500, 500),
    },
    "fer2013": {
        "private": (879, 594, 626, 491, 416, 55, 528),
        "public": (895, 653, 607, 467, 415, 56, 496),
        "train": (7215, 4830, 4965, 3995, 3171, 436, 4097),
    },
    "ckplus": {"all": CK},
    "ckplus48": {"all": CK},
    "kmu_fed": {"all": (210, 180, 190, 200, 120, 200)},
}
NEAR = 0.02
"""Counts of copies of a set that differ by this share are taken for the published ones."""


def renumbered(dataset: str, counts: Mapping[str, Sequence[int]]) -> str | None:
    """Return a partition whose counts are the published ones, or nearly so, in another order of classes; None if there
    is none.

    Such counts can only come from split files that number the emotions differently.
    """
    for partition, known in TOTALS.get(dataset, {}).items():
        got = tuple(counts.get(partition, ()))
        permuted = got != known and sorted(got) == sorted(known)
        if permuted or (not _near(got, known) and _near(sorted(got), sorted(known))):
            return partition
    return None


def _near(got: Sequence[int], known: Sequence[int]) -> bool:
    return len(got) == len(known) and all(abs(a - b) <= NEAR * b for a, b in zip(got, known, strict=True))
