"""Describe what a training would do, for `--dry-run`."""

from dfer.distributed import World
from dfer.jobs.config import RunConfig
from dfer.jobs.features import with_stored_features
from dfer.jobs.fold_data import open_fold, train_loader
from dfer.jobs.initial import initial_model
from dfer.jobs.targets import voted, votes_text, words
from dfer.models.files import trains_nothing
from dfer.recognition import Recognizer
from dfer.training.optim import group_settings


def describe(config: RunConfig, world: World) -> str:
    """Describe what `train` would do: clips, parameters by group, steps. Reads manifest and indexes; does not train."""
    clips, line = with_stored_features(config, open_fold(config))
    initial = initial_model(config, clips, World())
    recognizer = initial.model
    nothing = trains_nothing(config.model)
    sizes = {name: sum(p.numel() for p in group.params) for name, group in recognizer.param_groups().items()}
    rates = {} if nothing else _rates(config, recognizer)
    frozen = sum(p.numel() for p in recognizer.parameters() if not p.requires_grad)
    does = "trains nothing" if nothing else f"trains on {', '.join(clips.fold.train.names)}"
    lines = [f"fold {clips.number} of {clips.num_folds}: {does}"]
    for name, part in (("train", clips.train), ("select", clips.select), ("test", clips.test)):
        if part is not None:
            counts = ", ".join(f"{e} {n}" for e, n in zip(clips.emotions.names, part.counts))
            left_out = f"; {part.left_out} left out, without a label or of another class" if part.left_out else ""
            lines.append(f"{name:>8}: {len(part)} clips ({counts}){left_out}")
    lines += [f"{name:>8}: {count:,} parameters, lr {rates.get(name)}" for name, count in sizes.items()]
    lines.append(f"  frozen: {frozen:,} parameters")
    if not nothing:
        loader = train_loader(config, clips, world)
        steps = loader.steps_per_epoch
        lines.append(
            f"   steps: {steps} an epoch, {steps * config.epochs} in all, {loader.accumulation} micro-batches each"
        )
    if aim := words(config):
        lines.append(f" targets: {aim}")
    if config.data.targets == "votes":
        shares, count = voted(clips)
        lines.append(f"   votes: {votes_text(count, len(shares))}")
    return "\n".join([*lines, *line, *(f" weights: {note}" for note in initial.notes or ())])


def _rates(config: RunConfig, recognizer: Recognizer) -> dict[str, float]:
    """Return the rates by group; the optimizer may have two settings of a group, with and without weight decay."""
    return {setting.name.partition("/")[0]: setting.lr for setting in group_settings(config.optim, recognizer)}
