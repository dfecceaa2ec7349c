"""Initialise a model from the weights of another run or a saved model: tensor by tensor, and class by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.recognition import Recognizer

TOWERS = "towers."


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Record of the copied tensors. whole: names copied whole. by_class: names of which the rows of `classes` were
    copied. left: names that keep this run's random initialisation. unused: names that only the other run has."""

    whole: tuple[str, ...]
    by_class: tuple[str, ...]
    classes: tuple[str, ...]
    fresh_classes: tuple[str, ...]
    left: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def drawn(self) -> tuple[str, ...]:
        """What is random: tensors, and the rows of classes that only the model has."""
        rows = (f"{name} of {label}" for name in self.by_class for label in self.fresh_classes)
        return (*self.left, *rows)

    def lines(self) -> list[str]:
        """Describe the record in words, one line per kind."""
        out = [f"{len(self.whole)} tensors taken as they are"]
        if self.by_class:
            drawn = f"; drawn for {', '.join(self.fresh_classes)}" if self.fresh_classes else ""
            out.append(f"{', '.join(self.by_class)}: taken for {', '.join(self.classes) or 'no class'}{drawn}")
        if self.left:
            out.append(f"not in it, or of another shape, so drawn: {', '.join(self.left)}")
        if self.unused:
            out.append(f"in it, but not used here: {', '.join(self.unused)}")
        return out


def take(
    model: Recognizer,
    weights: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    own_classes: Sequence[str],
    where: object,
) -> Taken:
    """Copy the tensors of equal name and shape into `model`; those with a row per class row by row, by class name.

    Towers are copied whole or refused: a mixture of two towers would compute meaningless features.

    Args:
        classes, own_classes: names in class order, of the weights and of the model. where: for messages.
    Raises:
        CheckpointError: the other run has other towers.
    """
    own = model.state_dict()
    _check_towers(own, weights, where)
    bound = [name for name in model.class_parameters() if _same_but_classes(name, own, weights, len(classes))]
    whole = [name for name in own if name not in model.class_parameters() and _same_shape(name, own, weights)]
    rows = [(own_classes.index(name), i) for i, name in enumerate(classes) if name in own_classes]
    with torch.no_grad():
        for name in whole:
            own[name].copy_(weights[name])
        for name in bound:
            for to, source in rows:
                own[name][to].copy_(weights[name][source])
    return Taken(
        whole=tuple(whole),
        by_class=tuple(bound),
        classes=tuple(own_classes[to] for to, _ in sorted(rows)),
        fresh_classes=tuple(name for name in own_classes if name not in classes),
        left=tuple(name for name in own if name not in whole and name not in bound),
        unused=tuple(sorted(name for name in weights if name not in whole and name not in bound)),
    )


def _same_shape(name: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return name in weights and weights[name].shape == own[name].shape


def _same_but_classes(name: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], count: int) -> bool:
    """Whether both have a tensor with one row per class, of equal shape except for the number of rows."""
    return name in weights and weights[name].shape == (count, *own[name].shape[1:])


def _check_towers(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: object) -> None:
    odd = [name for name in own if name.startswith(TOWERS) and not _same_shape(name, own, weights)]
    if odd:
        name = odd[0]
        got = f"{name} of {tuple(weights[name].shape)}" if name in weights else f"none named {name}"
        do = "Set model.towers.arch and model.towers.image_size as that run has them."
        raise CheckpointError(message(where, expected=f"{name} of {tuple(own[name].shape)}", got=got, do=do))
