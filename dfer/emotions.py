"""Label sets: names in class order, their descriptors, and the words the raw data sets use for them.

Names map to classes, never numbers to numbers: every repository of the field numbers its labels differently.
Descriptors are parameters of the published DFER-CLIP checkpoints (Zhao & Patras, BMVC 2023) and stand as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfer.errors import UsageError, did_you_mean, message

TextKind = Literal["class_names", "class_names_with_context", "class_descriptor", "photo"]

BASIC7 = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
MAFW11 = (*BASIC7, "contempt", "anxiety", "helplessness", "disappointment")
LABEL_SETS: dict[str, tuple[str, ...]] = {"basic7": BASIC7, "mafw11": MAFW11}

# Words for the same emotion in raw folders, split files and annotation tables.
SYNONYMS: dict[str, str] = {
    "happy": "happiness", "sad": "sadness", "angry": "anger", "surprised": "surprise",
    "disgusted": "disgust", "fearful": "fear", "contemptuous": "contempt", "anxious": "anxiety",
    "helpless": "helplessness", "disappointed": "disappointment",
}  # fmt: skip

DESCRIPTORS: dict[str, str] = {
    "happiness": "a smiling mouth, raised cheeks, wrinkled eyes, and arched eyebrows.",
    "sadness": "tears, a downward turned mouth, drooping upper eyelids, and a wrinkled forehead.",
    "neutral": "relaxed facial muscles, a straight mouth, a smooth forehead, and unremarkable eyebrows.",
    "anger": "furrowed eyebrows, narrow eyes, tightened lips, and flared nostrils.",
    "surprise": "widened eyes, an open mouth, raised eyebrows, and a frozen expression.",
    "disgust": "a wrinkled nose, lowered eyebrows, a tightened mouth, and narrow eyes.",
    "fear": "raised eyebrows, parted lips, a furrowed brow, and a retracted chin.",
    "contempt": "one side of its mouth raised, one eyebrow lower and one raised, narrowed eyes, and a raised chin.",
    "anxiety": "a tensed forehead, tightly pressed lips, pupil dilation, and tensed facial muscles.",
    "helplessness": "drooping eyebrows, a downward gaze, a downturned mouth, and lacking expression.",
    "disappointment": "a downturned mouth, lowered eyebrows, narrowed eyes, and a sighing face.",
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

    def texts(self, kind: TextKind) -> list[str]:
        """One text a class: the part of the prompt that is not learned (DFER-CLIP, section 3.2 and table 5)."""
        match kind:
            case "class_names":
                return [f"{name}." for name in self.names]
            case "class_names_with_context":
                return [f"an expression of {name}." for name in self.names]
            case "photo":
                return [f"a photo of {name}." for name in self.names]
            case "class_descriptor":
                return [DESCRIPTORS[name] for name in self.names]


def canonical_name(word: str) -> str:
    """`Happy` -> `happiness`; a word without a synonym is returned in lower case."""
    word = word.strip().lower()
    return SYNONYMS.get(word, word)


def label_set(name: str) -> Emotions:
    """The label set of that name (`basic7`: DFEW, FERV39k; `mafw11`: MAFW). Raises UsageError for an unknown one."""
    if name not in LABEL_SETS:
        raise UsageError(
            message("label set", expected="a known name", got=repr(name), do=did_you_mean(name, LABEL_SETS))
        )
    return Emotions(names=LABEL_SETS[name])


def emotions_of(names: Sequence[str]) -> Emotions:
    """A label set from a manifest's class names. Raises UsageError when a name is unknown or stands twice."""
    unknown = [name for name in names if name not in MAFW11]
    if unknown or len(set(names)) != len(names) or not names:
        raise UsageError(
            message(
                "classes",
                expected=f"distinct names out of {', '.join(MAFW11)}",
                got=", ".join(names) or "none",
                do="Use the names as listed.",
            )
        )
    return Emotions(names=tuple(names))
