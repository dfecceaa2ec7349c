"""Choices that several rooms share. Imports no torch."""

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]

Selection = Literal["last", "best_on_val", "best_on_test"]

SELECTION_TEXT: dict[str, str] = {
    "last": "last: the checkpoint at the end of training",
    "best_on_val": "best_on_val: the best checkpoint on clips held out of the training partitions",
    "best_on_test": "best_on_test: the best checkpoint on the test clips, the protocol of the papers; optimistic",
    "none": "none: nothing was trained",
    "unknown": "unknown: the source does not say",
}

LEAKS_LABEL = "LEAKS LABEL"
"""Mark of scores whose model was given the true label of the test clips."""
