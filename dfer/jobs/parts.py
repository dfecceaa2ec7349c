"""The parts of a job, told without torch, so that launchers and status answer at once."""

from dfer.data.splits import folds
from dfer.jobs.config import RunConfig
from dfer.store.shards import Store


def known_folds(config: RunConfig) -> list[int]:
    """The folds the shards give."""
    return list(folds(Store(config.data.shards).manifest, config.data.protocol))
