"""What training aims at: labels or votes, smoothed and mixed as the configuration says."""

import sys

import torch

from dfer.config import ConfigProblem
from dfer.data.mix import Mix
from dfer.data.votes import Floats, vote_shares
from dfer.distributed import World
from dfer.errors import DataError, message
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import FoldData, clips_of_rows
from dfer.models.files import trains_nothing


def mix_of(config: RunConfig, clips: FoldData, world: World) -> Mix:
    """Make the function that gives training batches their targets. The first rank prints how many clips have votes.

    Raises:
        ConfigProblem: clips are mixed, and a micro-batch has one clip. DataError: as `voted`.
    """
    if config.data.mix.mixes and config.share(world) < 2:
        expected = "micro-batches of 2 clips or more, since data.mix mixes the clips of one"
        raise ConfigProblem(f"micro_batch: expected {expected}, got 1. Set micro_batch or batch higher")
    votes = None
    if config.data.targets == "votes":
        shares, count = voted(clips)
        votes = torch.from_numpy(shares[clips_of_rows(config, clips)])
        if world.is_first:
            print(f"note: {votes_text(count, len(shares))}", file=sys.stderr, flush=True)
    return Mix(config.data.mix, seed=config.seed, num_classes=len(clips.emotions), votes=votes)


def voted(clips: FoldData) -> tuple[Floats, int]:
    """Return the class probabilities of the training clips, float [N K], and the number of clips that have votes.

    Raises:
        DataError: there are training clips, and none has votes for the classes of the run.
    """
    shares, alone = vote_shares(clips.train, clips.emotions)
    if len(shares) and alone == len(shares):
        expected = "training clips with votes of annotators, since data.targets=votes"
        got = f"none among {len(shares):,} clips of {clips.store.manifest.dataset}"
        do = "Set data.targets=labels, or data.shards to a set with votes, such as FERPlus."
        raise DataError(message(clips.store.url, expected=expected, got=got, do=do))
    return shares, len(shares) - alone


def votes_text(count: int, clips: int) -> str:
    """Say how many of the training clips have votes."""
    alone = clips - count
    return f"data.targets=votes: {count:,} of {clips:,} training clips have votes, {alone:,} their label alone"


def votes_fact(config: RunConfig, clips: FoldData) -> list[int] | None:
    """Return how many training clips have votes, and how many there are, where only some have the votes that they are
    trained on; else None. Raises DataError as `voted`."""
    if config.data.targets != "votes" or trains_nothing(config.model):
        return None
    shares, count = voted(clips)
    return [count, len(shares)] if count < len(shares) else None


def words(config: RunConfig) -> str:
    """Describe what training aims at and how often it takes clips, for the result; empty for labels, each clip once,
    and for a method that trains nothing."""
    if trains_nothing(config.model):
        return ""
    data, mix = config.data, config.data.mix
    found = [
        "votes of the annotators" if data.targets == "votes" else "",
        f"smoothed by {mix.label_smoothing}" if mix.label_smoothing else "",
        f"mixup {mix.mixup} (Beta {mix.mixup_alpha})" if mix.mixup else "",
        f"FMix {mix.fmix} (Beta {mix.fmix_alpha}, decay {mix.fmix_decay})" if mix.fmix else "",
        f"classes balanced with power {data.balance}" if data.balance else "",
    ]
    return ", ".join(word for word in found if word)
