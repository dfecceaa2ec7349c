"""Label sets: names in class order, and the words the raw data sets use for them.

Classes are matched by name, never by number: every repository of the field numbers its labels differently.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfer.errors import UsageError, did_you_mean, message

BASIC7 = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
MAFW11 = (*BASIC7, "contempt", "anxiety", "helplessness", "disappointment")
BASIC8 = (*BASIC7, "contempt")
BASIC6 = tuple(name for name in BASIC7 if name != "neutral")
CK7 = (*BASIC6, "contempt")
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "basic7": BASIC7,
    "mafw11": MAFW11,
    "affectnet8": BASIC8,
    "ferplus8": BASIC8,
    "ck7": CK7,
    "kmu6": BASIC6,
}

NAME = re.compile(r"[a-z][a-z0-9_ -]{0,39}")
"""A class name."""

# Words for the same emotion in raw folders, split files and annotation tables.
SYNONYMS: dict[str, str] = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "contemptuous": "contempt",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}


@dataclass(frozen=True, kw_only=True)
class Emotions:
    """An ordered label set; position in `names` is the class number."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, word: str) -> int:
        """Class number of a name or one of its synonyms, in any letter case. Raises UsageError for an unknown word."""
        name = canonical_name(word)
        if name not in self.names:
            expected = f"one of {', '.join(self.names)}"
            raise UsageError(message("emotion", expected=expected, got=repr(word), do=did_you_mean(name, self.names)))
        return self.names.index(name)


def canonical_name(word: str) -> str:
    """`Happy` -> `happiness`; a word without a synonym is returned in lower case."""
    word = word.strip().lower()
    return SYNONYMS.get(word, word)


def label_set(name: str) -> Emotions:
    """Return a label set by name (`basic7`: DFEW, FERV39k, AFEW, RAF-DB, FER2013; `mafw11`, `affectnet8`, `ferplus8`,
    `ck7`, `kmu6`: the set of that name). Raises UsageError for an unknown name."""
    if name not in LABEL_SETS:
        raise UsageError(
            message("label set", expected="a known name", got=repr(name), do=did_you_mean(name, LABEL_SETS))
        )
    return Emotions(names=LABEL_SETS[name])


def emotions_of(names: Sequence[str]) -> Emotions:
    """Make a label set of any names, known emotions or not. Raises UsageError for a malformed or repeated name."""
    odd = [name for name in names if not NAME.fullmatch(name)]
    if odd or len(set(names)) != len(names) or not names:
        expected = "distinct names of small letters, digits, spaces, _ and -"
        got = repr(odd[0]) if odd else ", ".join(names) or "none"
        raise UsageError(message("classes", expected=expected, got=got, do="Correct the class names."))
    return Emotions(names=tuple(names))
