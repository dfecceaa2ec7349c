"""The configuration of every method. `ModelConfig` is their union; the key `name` chooses one. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dfer.config import ConfigProblem, key
from dfer.models.config_clivp_fer import ClivpFerConfig, CnnConfig
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import FrozenTower, TemporalConfig, TowersConfig
from dfer.models.texts import check_kind

ContextPosition = Literal["end", "middle", "front"]


@dataclass(frozen=True, kw_only=True)
class DferClipConfig:
    """DFER-CLIP and its ablations (tables 1, 2, 4 and 5 of the paper); the defaults are the published model.

    towers: which CLIP. start: folder (also s3://...) of a saved model, or of a run from whose selected checkpoint the
        initial weights are taken: parameters of equal name and shape, and the contexts of classes by class name. In the
        folder of a cross-validation, the same fold is used.
    text: the fixed part of a class's prompt: one of the kinds in dfer/models/texts.py, or the path of a YAML file with
        a line `class: text` for every class. num_contexts: number of learnable vectors next to the text (0, 4, 8, 16 in
        the paper).
    context_position: where the text stands: `end` after the contexts, `front` before them, `middle` between them.
    shared_contexts: one set of contexts for all classes instead of one each.
    temporal: the temporal model; depth 0 averages the frames.
    train_image: whether the image tower is trained; the text tower never is.
    temperature: divides the cosine similarity; CLIP's own scale is not used.
    """

    GONE: ClassVar[Mapping[str, str]] = {
        "released": "Make a saved model of the file, `dfer import FILE --method dfer_clip --dataset SET OUT`, and set "
        "model.start=OUT in its place"
    }

    name: Literal["dfer_clip"] = "dfer_clip"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    text: str = key("class_descriptor", file=True)
    num_contexts: int = 8
    context_position: ContextPosition = "end"
    shared_contexts: bool = False
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    train_image: bool = True
    temperature: float = 0.01

    def __post_init__(self) -> None:
        check_kind(self.text)
        if self.num_contexts < 0:
            raise ConfigProblem(f"num_contexts: expected 0 or more, got {self.num_contexts}.")
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. The paper's is 0.01.")
        if not (self.num_contexts or self.temporal.depth or self.train_image):
            raise ConfigProblem(
                "num_contexts, temporal.depth, train_image: with 0, 0 and false nothing is left to train. "
                "Turn one of them on."
            )

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """A linear classifier on the mean frame feature of a frozen image tower (Radford et al., 2021, section 3.2).

    towers: which CLIP; its text tower is not used. start: run or saved model whose weights are the initial ones.
    clip_normalisation: normalise frames with CLIP's mean and deviation, as in CLIP's training, instead of only scaling
    them to 0..1. The values are OpenAI's; weights known to be trained with others are refused.
    """

    name: Literal["linear_probe"] = "linear_probe"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    clip_normalisation: bool = True

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames (`data.features`)."""
        return FrozenTower(towers=self.towers, clip_normalisation=self.clip_normalisation)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """CLIP without training: the mean frame feature is compared with the class texts; with `head`, Exp-CLIP zero-shot
    (Zhao et al., WACV 2025).

    towers: which CLIP. start: run whose weights are taken. text: as in DferClipConfig; kinds with several texts a class
    are allowed, the class logit is then the mean of their logits. clip_normalisation: as in LinearProbeConfig; the
    releases of DFER-CLIP and Exp-CLIP do not normalise. head: path of a linear map without bias that is applied to both
    features, as `mlp.weight` [P D] in a .pth or safetensors file. temperature: divides the cosine similarity.
    """

    name: Literal["zero_shot"] = "zero_shot"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    text: str = key("class_names", file=True)
    clip_normalisation: bool = False
    head: str | None = key(None, file=True)
    temperature: float = 0.01

    def __post_init__(self) -> None:
        check_kind(self.text)
        _check_temperature(self.temperature)

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames (`data.features`)."""
        return FrozenTower(towers=self.towers, clip_normalisation=self.clip_normalisation)


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Full fine-tuning: image tower, temporal model and a linear classifier are trained (Zhao & Patras, BMVC 2023,
    table 2).

    towers: which CLIP; its text tower is not used. start: run whose weights are the initial ones. temporal: the
    temporal model; depth 0 averages the frames. clip_normalisation: as in LinearProbeConfig.
    """

    name: Literal["fine_tune"] = "fine_tune"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    temporal: TemporalConfig = field(default_factory=lambda: TemporalConfig(depth=0))
    clip_normalisation: bool = False

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


@dataclass(frozen=True, kw_only=True)
class CoOpConfig:
    """CoOp (Zhou et al., IJCV 2022): learned contexts in front of the class names, both towers frozen. The defaults are
    those of its code.

    towers: which CLIP. start: run whose weights are the initial ones. text: as in DferClipConfig. num_contexts: number
    of learned vectors. context_words: words whose embeddings are the initial contexts, one token each, instead of
    random values (`a photo of a`). context_position: as in DferClipConfig, but a period at the end of the text stays
    last. shared_contexts: one set of contexts for all classes. clip_normalisation: as in LinearProbeConfig.
    temperature: divides the cosine similarity; 0.01 is the inverse of CLIP's own scale.
    """

    name: Literal["coop"] = "coop"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    text: str = key("class_names", file=True)
    num_contexts: int = 16
    context_words: str | None = None
    context_position: ContextPosition = "end"
    shared_contexts: bool = True
    clip_normalisation: bool = False
    temperature: float = 0.01

    def __post_init__(self) -> None:
        _check_contexts(self.text, self.num_contexts, self.temperature)
        _check_words(self.context_words, self.start)
        if self.context_words is not None and not self.shared_contexts:
            raise ConfigProblem(
                "context_words, shared_contexts: expected shared contexts for given words, got one set a class. "
                "Set shared_contexts=true or context_words=null."
            )

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames (`data.features`)."""
        return FrozenTower(towers=self.towers, clip_normalisation=self.clip_normalisation)


@dataclass(frozen=True, kw_only=True)
class CoCoOpConfig:
    """Co-CoOp (Zhou et al., CVPR 2022): as CoOp, with a small network that shifts the contexts for every clip. The
    defaults are those of its code; the keys are CoOp's.
    """

    name: Literal["cocoop"] = "cocoop"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    text: str = key("class_names", file=True)
    num_contexts: int = 4
    context_words: str | None = None
    clip_normalisation: bool = False
    temperature: float = 0.01

    def __post_init__(self) -> None:
        _check_contexts(self.text, self.num_contexts, self.temperature)
        _check_words(self.context_words, self.start)

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """The tower whose stored features can be read instead of frames (`data.features`)."""
        return FrozenTower(towers=self.towers, clip_normalisation=self.clip_normalisation)


TextFrom = Literal["caption", "class", "caption_or_class"]
"""Which text a clip is trained with: its own, that of its class, or that of its class where it has none of its own."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """CLIP's symmetric contrastive training on clips and their captions; evaluated zero-shot with the class texts.

    towers: which CLIP. start: run whose weights are the initial ones. temporal: the temporal model; depth 0 averages
    the frames. text: class texts of the evaluation, as in ZeroShotConfig. text_from: which text a training clip has;
    `class`: the first text of its class. train_image, train_text: whether a tower is trained. clip_normalisation: as
    in LinearProbeConfig. temperature: divides the cosine similarity; learn_temperature: it is the initial value of a
    learned one, which stays at 0.01 or more, as in CLIP (Radford et al., 2021, section 2.5: 0.07).
    """

    name: Literal["contrastive"] = "contrastive"
    towers: TowersConfig = field(default_factory=TowersConfig)
    start: str | None = key(None, path=True)
    temporal: TemporalConfig = field(default_factory=lambda: TemporalConfig(depth=0))
    text: str = key("class_names", file=True)
    text_from: TextFrom = "caption"
    train_image: bool = True
    train_text: bool = True
    clip_normalisation: bool = False
    temperature: float = 0.07
    learn_temperature: bool = True

    def __post_init__(self) -> None:
        check_kind(self.text)
        _check_temperature(self.temperature)
        if self.learn_temperature and self.temperature < MIN_TEMPERATURE:
            raise ConfigProblem(
                f"temperature: expected at least {MIN_TEMPERATURE} where it is learned, got {self.temperature}. "
                "Set it higher, or learn_temperature=false."
            )
        if not (self.train_image or self.train_text or self.temporal.depth):
            raise ConfigProblem(
                "train_image, train_text, temporal.depth: with false, false and 0 nothing is left to train. "
                "Turn one of them on."
            )

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


MIN_TEMPERATURE = 0.01
"""Smallest learned temperature: CLIP clips its scale to at most 100 (Radford et al., 2021, section 2.5)."""


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ConfigProblem(f"temperature: expected more than 0, got {temperature}. CLIP's is 0.01.")


def _check_contexts(text: str, num_contexts: int, temperature: float) -> None:
    check_kind(text)
    _check_temperature(temperature)
    if num_contexts < 1:
        raise ConfigProblem(f"num_contexts: expected 1 or more, got {num_contexts}. Nothing else is trained.")


def _check_words(words: str | None, start: str | None) -> None:
    if words is not None and not words.strip():
        raise ConfigProblem("context_words: expected words, got none. Set it to null for random contexts.")
    if words is not None and start is not None:
        raise ConfigProblem(
            "context_words, start: expected one of them, got both. The words' embeddings come from the weights of "
            "model.towers; set one to null."
        )


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """A linear map from a student's features to a teacher's. temperature: divides the cosine similarity; Exp-CLIP uses
    0.01, the inverse of CLIP's logit scale."""

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. Exp-CLIP's is 0.01.")


ModelConfig = (
    DferClipConfig
    | LinearProbeConfig
    | ZeroShotConfig
    | FineTuneConfig
    | CoOpConfig
    | CoCoOpConfig
    | ContrastiveConfig
    | DkClipConfig
    | ClivpFerConfig
    | CnnConfig
)
"""Every method's configuration; which one is chosen by its `name`."""

TextConfig = (
    DferClipConfig | ZeroShotConfig | CoOpConfig | CoCoOpConfig | ContrastiveConfig | DkClipConfig | ClivpFerConfig
)
"""Methods with class texts, in `text`."""
