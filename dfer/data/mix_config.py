"""Configuration of label smoothing, mixup and FMix. Imports no torch."""

from dataclasses import dataclass

from dfer.config import ConfigProblem
from dfer.errors import message


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Soft targets and mixed clips in training; all off by default. Values of DK-CLIP's release (commit 1c437cc,
    datasets/blending.py): label_smoothing 0.1, mixup 0.5, fmix 0.5, and the defaults of the other keys.

    label_smoothing: share of the probability that is spread evenly over all classes. mixup: probability that the clips
    of a micro-batch are mixed pixel by pixel (Zhang et al., 2018) with one weight, drawn from Beta(mixup_alpha,
    mixup_alpha). fmix: probability that they are mixed by one mask (Harris et al., 2020), whose mean is drawn from
    Beta(fmix_alpha, fmix_alpha); fmix_decay: exponent by which the mask's frequencies decay. The two exclude each
    other.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    mixup_alpha: float = 0.8
    fmix: float = 0.0
    fmix_alpha: float = 1.0
    fmix_decay: float = 3.0

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "mixup", "fmix"):
            value, below = getattr(self, name), name == "label_smoothing"
            if not 0 <= value <= 1 or (below and value == 1):
                expected = "0 or more, and below 1" if below else "a probability, 0 to 1"
                raise ConfigProblem(message(name, expected=expected, got=str(value), do="0 switches it off."))
        for name in ("mixup_alpha", "fmix_alpha", "fmix_decay"):
            if getattr(self, name) <= 0:
                do = "DK-CLIP's: mixup_alpha 0.8, fmix_alpha 1, fmix_decay 3."
                raise ConfigProblem(message(name, expected="more than 0", got=str(getattr(self, name)), do=do))
        if self.mixup + self.fmix > 1:
            expected, do = "probabilities whose sum is at most 1", "A micro-batch is mixed in one way."
            raise ConfigProblem(message("mixup, fmix", expected=expected, got=f"{self.mixup}, {self.fmix}", do=do))

    @property
    def mixes(self) -> bool:
        """Whether clips of a micro-batch are mixed, so that each depends on the others."""
        return self.mixup + self.fmix > 0
