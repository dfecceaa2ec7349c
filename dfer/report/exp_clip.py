"""Published numbers of Exp-CLIP (Zhao, Cao, Gong, Patras, WACV 2025, arXiv 2405.19100): UAR and WAR in percent, quoted
to stand beside ours. Imports no torch.

The logs say what the released heads gave for each prompt kind, as means over folds. The README table is neither of one
prompt kind nor the mean of the five, and no prompt kind is given with it.
"""

from collections.abc import Sequence

from dfer.emotions import BASIC7, BASIC8, MAFW11
from dfer.evaluation.results import Published

SETS = ("raf_db", "affectnet7", "affectnet8", "ferplus", "dfew", "ferv39k", "mafw", "afew")
"""Data sets, in the order of the numbers."""
DATASETS = {"affectnet7": "affectnet", "affectnet8": "affectnet"}
"""The name in the shards' manifest, where it is another."""
CLASSES = dict(zip(SETS, (BASIC7, BASIC7, BASIC8, BASIC8, BASIC7, BASIC7, MAFW11, BASIC7), strict=True))
"""The classes of each set, by canonical name."""
FOLDS = {"dfew": 5, "mafw": 5}
"""Number of folds, where it is not one."""
FRAMES = 16
"""Frames of a clip."""
KINDS = ("class_names", "class_names_with_context", "face_with_expression", "ensemble_5", "ensemble_10")
"""The prompt kinds 1 to 5 of the release."""
LOG_SOURCE = "log of the release, github zengqunzhao/Exp-CLIP @23ace53, ExpCLIP_{head}.txt"
README_SOURCE = "README table of the release, github zengqunzhao/Exp-CLIP @23ace53"
NO_KIND = "of no single prompt kind"
NO_LIST = "its list of test pictures is not released"
CAVEATS = {"affectnet7": NO_LIST, "affectnet8": NO_LIST, "ferplus": "its rule from votes to labels is not known"}
"""What a reader must know beside the numbers on a set, in short words."""
Scores = tuple[float, float]
"""UAR and WAR in percent."""

_LOG = """
B32 1 36.00/44.95 29.26/29.27 25.56/25.56 25.75/37.26 20.91/27.37 19.39/20.30 16.05/20.10 32.09/33.33
B32 2 42.00/51.27 33.01/33.01 28.98/28.98 40.62/45.20 28.08/26.37 22.36/19.79 19.59/22.66 31.34/31.50
B32 3 38.68/45.05 31.12/31.12 27.41/27.41 39.36/36.98 25.11/29.41 21.94/24.14 17.87/21.05 31.64/33.60
B32 4 40.34/48.57 33.49/33.50 29.33/29.33 40.27/42.97 24.96/26.96 21.58/21.01 18.92/23.02 34.20/35.70
B32 5 39.82/50.49 33.98/33.98 29.76/29.76 40.94/44.09 25.32/26.78 22.36/22.19 18.75/23.77 32.37/34.12
B16 1 41.57/47.13 34.95/34.95 30.26/30.26 37.91/44.92 22.96/29.59 23.85/26.15 19.03/22.31 38.57/39.90
B16 2 57.01/60.72 38.87/38.87 33.96/33.96 42.01/53.49 30.90/31.74 27.28/29.14 21.42/26.14 35.17/34.91
B16 3 48.42/54.11 38.98/38.98 33.56/33.56 39.78/53.71 25.70/31.17 25.16/28.69 18.86/23.75 31.17/32.28
B16 4 52.86/59.32 39.38/39.38 33.61/33.61 42.29/55.98 30.20/32.49 27.17/29.08 21.70/26.49 36.64/37.80
B16 5 50.82/58.87 40.10/40.10 34.26/34.26 43.33/55.24 30.32/33.77 27.94/30.06 22.01/28.21 36.04/36.75
L14 1 50.38/55.02 37.92/37.93 33.28/33.28 48.06/50.59 26.65/31.36 23.01/24.99 20.67/23.78 32.16/33.07
L14 2 58.08/62.87 42.41/42.41 37.43/37.43 51.07/55.66 38.22/38.07 27.44/26.23 25.12/28.99 37.90/37.80
L14 3 57.93/65.94 44.47/44.47 38.41/38.41 46.95/55.82 40.73/47.09 27.94/31.57 24.19/27.31 40.27/41.47
L14 4 57.18/63.20 42.90/42.90 37.93/37.93 51.47/54.64 39.50/41.83 28.72/28.86 25.64/29.31 37.74/38.32
L14 5 57.99/63.89 43.70/43.70 38.31/38.31 50.95/54.86 40.30/45.02 29.17/31.43 26.33/31.52 39.47/40.42
"""
"""Head, number of the prompt kind, and UAR/WAR on SETS."""
_README = """
CLIP B32 34.97/30.05 29.29/29.29 25.53/25.53 36.05/33.89 22.08/21.30 18.12/17.38 13.39/15.48 28.59/28.87
Exp-CLIP B32 39.56/42.14 31.73/31.73 27.63/27.63 37.83/37.04 24.25/25.87 21.48/21.25 17.53/20.27 29.72/31.23
CLIP B16 38.66/37.16 34.35/34.35 29.38/29.38 34.33/45.14 22.92/28.33 19.81/22.51 15.45/17.25 28.21/29.13
Exp-CLIP B16 48.96/54.50 39.98/39.98 34.40/34.40 40.81/53.02 27.12/31.75 24.78/27.99 19.17/23.35 32.84/33.86
CLIP L14 47.22/41.13 34.46/34.47 29.96/29.96 33.82/46.67 32.02/38.12 21.97/28.99 20.42/25.58 35.50/38.32
Exp-CLIP L14 58.70/65.37 44.27/44.27 38.44/38.43 48.28/55.42 40.16/47.09 27.45/31.07 23.95/26.98 38.72/40.42
"""
"""Method, tower, and UAR/WAR on SETS."""


def _rows(text: str) -> dict[tuple[str, str], dict[str, Scores]]:
    """Read a table of lines by their first two words."""
    found = {}
    for line in text.strip().splitlines():
        first, second, *cells = line.split()
        pairs = [cell.partition("/")[::2] for cell in cells]
        found[first, second] = {name: (float(uar), float(war)) for name, (uar, war) in zip(SETS, pairs, strict=True)}
    return found


LOG, README = _rows(_LOG), _rows(_README)


def log_row(head: str, kind: str, dataset: str) -> Published | None:
    """Return what the release's log has for a head, a prompt kind and a set; None if it has no such row."""
    number = str(KINDS.index(kind) + 1) if kind in KINDS else ""
    found = LOG.get((head, number), {}).get(dataset)
    return found and _published(found, LOG_SOURCE.format(head=head), dataset)


def log_mean(head: str, kinds: Sequence[str], dataset: str) -> Published | None:
    """Return the mean over prompt kinds of the log's rows; None unless the log has all of them."""
    rows = [log_row(head, kind, dataset) for kind in kinds]
    there = [(row.uar, row.war) for row in rows if row is not None and row.uar is not None]
    if not rows or len(there) < len(rows):
        return None
    uar, war = (round(sum(column) / len(there), 2) for column in zip(*there, strict=True))
    return _published((uar, war), LOG_SOURCE.format(head=head), dataset, note=f"our mean of its {len(there)} kinds")


def readme_row(method: str, tower: str, dataset: str) -> Published | None:
    """Return a row of the README table. method: CLIP or Exp-CLIP. tower: B32, B16 or L14."""
    found = README.get((method, tower), {}).get(dataset)
    return found and _published(found, README_SOURCE, dataset, note=NO_KIND)


def _published(scores: Scores, source: str, dataset: str, *, note: str = "") -> Published:
    """Make the numbers of a row. Nothing is trained on the sets that are tested."""
    name, said = DATASETS.get(dataset, dataset), "; ".join(filter(None, (note, CAVEATS.get(dataset))))
    return Published(uar=scores[0], war=scores[1], source=source, selection="none", note=said, dataset=name)
