"""Weights of the released CNNs (github WuJie1010/Facial-Expression-Recognition.Pytorch, files *.t7) under our names.

VGG19: `features.N.*`, `classifier.*`.
ResNet18: `conv1`, `bn1`, `layerL.B.{conv1, bn1, conv2, bn2, shortcut.0, shortcut.1}`, `linear`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError, message

Net = Literal["vgg19", "resnet18"]
BLOCKS_A_STAGE = 2
STEM = 3
"""Layers before the first block: convolution, norm, ReLU."""
COUNTER = "num_batches_tracked"
"""Counter of a batch norm, which torch keeps since 0.4.1; older files lack it, and nothing reads it."""
PART = "(conv1|bn1|conv2|bn2|shortcut)"
HEAD = ("head.weight", "head.bias")
"""The tensors with one row per class, by this project's names."""
CK = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "contempt")
CLASSES = {
    "fer2013": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    "ckplus": CK,
    "ckplus48": CK,
}
"""Class order of the head by data set (@fefe665: the numbers of fer2013.csv, and preprocess_CK+.py)."""
PROTOCOLS = {"ckplus": "positional", "ckplus48": "positional"}
"""The protocol whose folds the authors trained on, where there are several: blocks of positions (@fefe665, CK.py)."""


def net_of(names: Collection[str]) -> Net | None:
    """Which of the two networks has these names; None for neither."""
    if "features.0.weight" in names and "classifier.weight" in names:
        return "vgg19"
    if "conv1.weight" in names and "linear.weight" in names:
        return "resnet18"
    return None


def check_classes(dataset: str, classes: Sequence[str]) -> None:
    """Raise ConfigProblem unless the class order of a file that was trained on this set is known, and `classes` are
    the same ones in any order."""
    known = CLASSES.get(dataset)
    if known is None:
        do = "Choose the one that the file was trained on; the order of its classes on other sets is not known."
        raise ConfigProblem(message("--dataset", expected=f"one of {', '.join(CLASSES)}", got=dataset or "none", do=do))
    if {*known} != {*classes}:
        do = "Leave data.classes out, or give these in another order."
        expected, got = f"the classes {', '.join(known)}", ", ".join(classes)
        raise ConfigProblem(message("data.classes", expected=expected, got=got, do=do))


def in_order(
    weights: Mapping[str, Tensor], *, dataset: str, classes: Sequence[str], where: object
) -> dict[str, Tensor]:
    """Reorder the rows of the head, which are in the released order of a data set, to that of `classes`.

    weights: by this project's names, as `ours` returns them. Raises ConfigProblem as `check_classes`, CheckpointError
    for another number of rows.
    """
    check_classes(dataset, classes)
    known, out = CLASSES[dataset], dict(weights)
    rows = torch.tensor([known.index(name) for name in classes])
    for name in HEAD:
        if name in out and (out[name].dim() == 0 or len(out[name]) != len(rows)):
            expected, got = f"{len(rows)} rows in the last layer, the classes of {dataset}", str(tuple(out[name].shape))
            do = "Give the --dataset that the file was trained on."
            raise CheckpointError(message(where, expected=expected, got=got, do=do))
        if name in out:
            out[name] = out[name][rows]
    return out


def ours(weights: Mapping[str, Tensor], *, where: object = "the file") -> dict[str, Tensor]:
    """Rename the tensors of a released network; every one is used. The rows of the head keep their order. where: for
    messages.

    Raises:
        CheckpointError: the names are not those of a released network.
    """
    net = net_of(weights)
    if net is None:
        got = f"names such as {', '.join(list(weights)[:3]) or 'none'}"
        do = "Give a .t7 file of that code; torchvision's networks have other layers."
        raise CheckpointError(message(where, expected="a released VGG19 or ResNet18", got=got, do=do))
    renamed = {name: _vgg19(name) if net == "vgg19" else _resnet18(name) for name in weights}
    unknown = [name for name, own in renamed.items() if own is None]
    if unknown:
        do = "Give the file as the released code saved it."
        got = f"{', '.join(unknown[:3])} among them"
        raise CheckpointError(message(where, expected=f"the names of the released {net}", got=got, do=do))
    out = {own: weights[name] for name, own in renamed.items() if own is not None}
    return {**_counters(out), **out}


def _vgg19(name: str) -> str | None:
    if match := re.fullmatch(r"features\.([0-9]{1,2})\.(\w+)", name):
        return f"body.{match[1]}.{match[2]}"
    return _head(name, "classifier")


def _resnet18(name: str) -> str | None:
    if match := re.fullmatch(r"(conv1|bn1)\.(\w+)", name):
        return f"body.{'0' if match[1] == 'conv1' else '1'}.{match[2]}"
    if match := re.fullmatch(rf"layer([1-4])\.([01])\.({PART}\.[\w.]+)", name):
        return f"body.{STEM + BLOCKS_A_STAGE * (int(match[1]) - 1) + int(match[2])}.{match[3]}"
    return _head(name, "linear")


def _head(name: str, last: str) -> str | None:
    match = re.fullmatch(rf"{last}\.(weight|bias)", name)
    return f"head.{match[1]}" if match else None


def _counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A counter of zero for every batch norm."""
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]
    return {f"{norm}{COUNTER}": torch.zeros((), dtype=torch.int64) for norm in norms}
