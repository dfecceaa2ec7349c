"""Check that every trainable parameter gets a gradient from every micro-batch, whatever the engine.

DDP waits for all gradients and fails a step later without naming the parameter; DeepSpeed ignores missing ones.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from dfer.errors import message


class Gradients:
    """Watches the backward passes of a model. Create it before an engine wraps the model."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {name for name, p in model.named_parameters() if p.requires_grad}
        self._got: set[str] = set()
        self._missing: set[str] = set()
        for name, param in model.named_parameters():
            if param.requires_grad:
                param.register_hook(self._note(name))  # type: ignore[no-untyped-call]

    @contextmanager
    def of_one_backward(self) -> Iterator[None]:
        """Record the parameters that get no gradient within the block."""
        self._got.clear()
        yield
        self._missing |= self._names - self._got

    def take_missing(self) -> list[str]:
        """Return and clear the names of parameters without a gradient in any backward pass since the last call."""
        missing, self._missing = sorted(self._missing), set()
        return missing

    def _note(self, name: str) -> Callable[[Tensor], None]:
        got = self._got  # not self: DeepSpeed's hooks outlive the engine, and would keep the model

        def note(_gradient: Tensor) -> None:
            got.add(name)

        return note


def missing(names: Sequence[str], *, where: str, most: int = 5) -> str:
    """Format the message about parameters without a gradient."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    do = "Nothing was updated. Let the method use them in every loss, or freeze them (requires_grad=False)."
    got = f"none for {', '.join(names[:most])}{more}"
    return message(where, expected="a gradient for every parameter that is trained", got=got, do=do)
