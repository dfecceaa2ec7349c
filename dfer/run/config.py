"""When checkpoints are saved and how many are kept. Imports no torch."""

from dataclasses import dataclass

from dfer.config import ConfigProblem
from dfer.errors import message


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how many of the newest to keep (the best one is kept in addition). The end is always saved.

    every_epochs, every_steps, every_minutes: a save is due by whichever comes first; None disables one.
    """

    every_epochs: int | None = 1
    every_steps: int | None = None
    every_minutes: float | None = 10
    keep_last: int = 2

    def __post_init__(self) -> None:
        for name, value in (("every_epochs", self.every_epochs), ("every_steps", self.every_steps)):
            if value is not None and value < 1:
                do = "null switches it off."
                raise ConfigProblem(message(name, expected="1 or more", got=str(value), do=do))
        if self.every_minutes is not None and self.every_minutes <= 0:
            got, do = str(self.every_minutes), "null switches it off."
            raise ConfigProblem(message("every_minutes", expected="minutes above 0", got=got, do=do))
        if self.keep_last < 1:
            do = "2 leaves one to fall back on."
            raise ConfigProblem(message("keep_last", expected="1 or more", got=str(self.keep_last), do=do))
