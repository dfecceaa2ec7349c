"""The configuration of DK-CLIP. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from dfer.config import ConfigProblem, key
from dfer.errors import message
from dfer.models.config_towers import FrozenTower, TowersConfig
from dfer.models.texts import check_kind


@dataclass(frozen=True, kw_only=True)
class DkClipLossConfig:
    """DK-CLIP's loss terms: cross entropy of the global logits, of the local logits, and agreement of both.

    schedule: `all` terms in every epoch; `global_then_all`: the global one alone before `epoch`, all from it on;
        `all_then_global`: all before `epoch`, the global one alone from it on. epoch: counts from 0.
    detached_target: no gradient into the soft target of the agreement. log_softmax_input: compare the logarithm of the
        local prediction with it; the released code takes the local prediction itself as logits.
    """

    schedule: Literal["all", "global_then_all", "all_then_global"] = "all"
    epoch: int | None = None
    detached_target: bool = False
    log_softmax_input: bool = False

    def __post_init__(self) -> None:
        if self.schedule == "all" and self.epoch is not None:
            raise ConfigProblem(f"epoch: expected none with schedule=all, got {self.epoch}. Leave it out.")
        if self.schedule != "all" and (self.epoch is None or self.epoch < 1):
            raise ConfigProblem(
                f"epoch: expected the epoch, 1 or later, at which {self.schedule} changes, got {self.epoch}. The "
                "logs of FERV39k and MAFW have 11, the released code has 14."
            )

    def all_terms(self, epoch: int) -> bool:
        """Whether all terms count in an epoch, which counts from 0."""
        late = self.epoch is not None and epoch >= self.epoch
        return {"all": True, "global_then_all": late, "all_then_global": not late}[self.schedule]


@dataclass(frozen=True, kw_only=True)
class DkClipConfig:
    """DK-CLIP (Li et al., ACM MM 2024); the defaults are the paper's model, apart from `second_encoder`.

    towers: which CLIP, a vision transformer. start: run whose weights are the initial ones. text: class texts, as in
        DferClipConfig; they are used without a template.
    snippet: consecutive frames of a snippet; `data.frames` must be a multiple of it.
    second_encoder: initial weights of the encoder over snippets: CLIP's image tower, or `random` as in the released
        code.
    train: `all` parts but the text tower; `released`: neither the second encoder nor the integration, which the
        released code freezes at their random initial weights.
    erase_below: snippets of less weight are erased. prompt_layers: layers of the prompt generator. prompt_alpha:
        initial factor of what it adds to the texts. temperature: divides cosine similarities, 1 / CLIP's logit scale.
    losses: the loss terms and their schedule.
    """

    name: Literal["dk_clip"] = "dk_clip"
    towers: TowersConfig = field(default_factory=lambda: TowersConfig(arch="ViT-B-16-quickgelu"))
    start: str | None = key(None, path=True)
    text: str = key("action_units", file=True)
    snippet: int = 4
    second_encoder: Literal["clip", "random"] = "clip"
    train: Literal["all", "released"] = "all"
    erase_below: float = 0.15
    prompt_layers: int = 2
    prompt_alpha: float = 0.1
    temperature: float = 0.01
    losses: DkClipLossConfig = field(default_factory=DkClipLossConfig)

    def __post_init__(self) -> None:
        check_kind(self.text)
        if self.snippet < 1:
            raise ConfigProblem(f"snippet: expected at least 1 frame, got {self.snippet}. The paper's is 4.")
        if not 0 <= self.erase_below < 1:
            raise ConfigProblem(
                f"erase_below: expected a weight from 0 to 1, got {self.erase_below}. The paper's is 0.15."
            )
        if self.prompt_layers < 1:
            raise ConfigProblem(f"prompt_layers: expected at least 1, got {self.prompt_layers}. The paper's is 2.")
        if self.temperature <= 0:
            raise ConfigProblem(f"temperature: expected more than 0, got {self.temperature}. CLIP's is 0.01.")

    @property
    def frozen_tower(self) -> FrozenTower | None:
        """None: this method reads only frames."""
        return None


def check_frames(frames: int, snippet: int) -> None:
    """Raise ConfigProblem unless a clip of so many frames is whole snippets."""
    if frames % snippet:
        expected, got = f"a multiple of model.snippet={snippet}", str(frames)
        near, short = max(snippet, frames // snippet * snippet), math.gcd(frames, snippet)
        do = f"Set data.frames={near}, or model.snippet={short}."
        raise ConfigProblem(message("data.frames", expected=expected, got=got, do=do))
