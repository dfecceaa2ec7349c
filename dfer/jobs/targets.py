"""What training aims at: labels or votes, smoothed and mixed as the configuration says."""

import sys

import torch

from dfer.config import ConfigProblem
from dfer.data.mix import Mix
from dfer.data.votes import vote_shares
from dfer.distributed import World
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import FoldData, clips_of_rows
from dfer.models.files import trains_nothing


def mix_of(config: RunConfig, clips: FoldData, world: World) -> Mix:
    """Make the function that gives training batches their targets. The first rank prints how many clips have votes.

    Raises:
        ConfigProblem: clips are mixed, and a micro-batch has one clip.
    """
    if config.data.mix.mixes and config.share(world) < 2:
        expected = "micro-batches of 2 clips or more, since data.mix mixes the clips of one"
        raise ConfigProblem(f"micro_batch: expected {expected}, got 1. Set micro_batch or batch higher")
    votes = None
    if config.data.targets == "votes":
        shares, alone = vote_shares(clips.train, clips.emotions)
        votes = torch.from_numpy(shares[clips_of_rows(config, clips)])
        if world.is_first:
            print(f"note: {votes_text(len(shares), alone)}", file=sys.stderr, flush=True)
    return Mix(config.data.mix, seed=config.seed, num_classes=len(clips.emotions), votes=votes)


def votes_text(clips: int, alone: int) -> str:
    """Say how many of the training clips have no votes."""
    return f"data.targets=votes: {clips - alone:,} of {clips:,} training clips have votes, {alone:,} their label alone"


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
