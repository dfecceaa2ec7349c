"""One data set of the zero-shot suite: features, then answers of every model and prompt kind on every fold.

Letters: N clips, K classes, M prompt kinds.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dfer.data.features import FeatureSet, name_of
from dfer.distributed import World, on_first
from dfer.errors import NonFiniteLossError, message
from dfer.evaluation.counts import confusion
from dfer.evaluation.evaluator import Predictions
from dfer.evaluation.results import predictions_csv
from dfer.interruption import Stop
from dfer.jobs.facts import now
from dfer.jobs.zeroshot_config import ZeroshotConfig, ZeroshotModel, asked, label_of
from dfer.jobs.zeroshot_features import CLIPS, Texts, Towers, clip_features
from dfer.jobs.zeroshot_sets import Ids, SetData, open_set
from dfer.models.files import SHA256
from dfer.models.frozen import normalisation_words
from dfer.models.head_file import ARCHS, OPENAI_FILES, other_weights, released_head
from dfer.models.texts import class_prompts
from dfer.models.zero_shot import class_logits, projected, read_head
from dfer.report.zeroshot import Answer, Gain, ModelFacts, SetResult, Together, read_result, write_result
from dfer.run.layout import note_progress
from dfer.storage import Folder
from dfer.store.format import data_name


def evaluate_set(config: ZeroshotConfig, name: str, run: str, world: World, stop: Stop) -> SetResult:
    """Evaluate all models and prompt kinds on one data set; returns a result that stands as it is. COLLECTIVE.

    run: folder of the part.

    Raises:
        DataError, CheckpointError, StorageError, StoppedError.
    """
    home = Folder(run, what="run")
    on_first(home.check_writable, world)
    data, began = open_set(config, name), time.monotonic()
    for kind in config.texts:
        class_prompts(
            data.emotions, kind
        )  # refuses a file without texts for these classes before features are computed
    towers = {model: Towers(config, model, world) for model in config.models}
    features = {model: clip_features(each, data, stop) for model, each in towers.items()}
    took = time.monotonic() - began
    return on_first(lambda: _on_first(config, name, home, data, towers, features, took), world)


def _on_first(
    config: ZeroshotConfig,
    name: str,
    home: Folder,
    data: SetData,
    towers: Mapping[str, Towers],
    features: Mapping[str, FeatureSet],
    took: float,
) -> SetResult:
    """Answer with the features, on the first rank, unless the result stands. took: seconds for the features."""
    want, there = asked(config, name), read_result(home)
    made_of = [(name_of(found.key), _files_of(found)) for found in features.values()]
    if there and (there.asked, there.sha256, [(one.features, one.files) for one in there.models]) == (
        want,
        data.sha256,
        made_of,
    ):
        return there
    found = _answers(config, home, data, towers, features)
    own_set = config.sets[name]
    held = data_name(data.dataset, generated=data.generated)
    result = SetResult(
        name=name,
        data=name if held == name else f"{name} ({held})",
        dataset=data.dataset,
        generated=data.generated,
        source="pictures" if own_set.pictures is not None else "shards",
        classes=data.emotions.names,
        protocol="pictures" if own_set.pictures is not None else own_set.protocol,
        folds={str(fold): len(rows) for fold, rows in data.folds.items()},
        clips=len(data.keys),
        left_out=data.left_out,
        frames=data.frames,
        short_clips=config.short_clips,
        short=data.short,
        precision=config.precision,
        sha256=data.sha256,
        asked=want,
        finished=now(),
        seconds={"features": round(took, 3), **found.seconds},
        kinds=tuple(map(label_of, config.texts)),
        models=tuple(_facts(model, own, towers[model], features[model]) for model, own in config.models.items()),
        answers=tuple(found.answers),
        together=tuple(found.together),
        gains=tuple(_gains(config, found.hits, data)),
    )
    write_result(result, home)
    note_progress(home, step=result.clips, complete=True)
    return result


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What all models and kinds answer. hits: bool [N], by model and kind, whether a clip was classified rightly.
    seconds: of each."""

    answers: list[Answer]
    together: list[Together]
    hits: dict[tuple[str, str], Tensor]
    seconds: dict[str, float]


def _answers(
    config: ZeroshotConfig,
    home: Folder,
    data: SetData,
    towers: Mapping[str, Towers],
    features: Mapping[str, FeatureSet],
) -> _Answers:
    """Answer with every model and kind, and write the predictions."""
    answers: list[Answer] = []
    together: list[Together] = []
    hits: dict[tuple[str, str], Tensor] = {}
    seconds: dict[str, float] = {}
    for model, own in config.models.items():
        dim = towers[model].embed_dim
        head = read_head(Path(own.head), dim=dim, model=f"models.{model}", towers=own.towers) if own.head else None
        clips, right = features[model].select(data.keys).features[CLIPS], torch.zeros(len(data.keys), dtype=torch.int64)
        for kind in config.texts:
            began = time.monotonic()
            found = answered(clips, Texts(towers[model], data.emotions, kind), own, head, data)
            hits[model, kind] = found.predicted == found.labels
            right += hits[model, kind]
            answers.append(Answer(model=model, kind=label_of(kind), confusion=_by_fold(found, data)))
            text = predictions_csv(found, keys=data.keys, classes=data.emotions.names)
            home.write(f"results/{model}-{label_of(kind)}_predictions.csv", text.encode("utf-8", "surrogateescape"))
            seconds[f"{model}, {label_of(kind)}"] = round(time.monotonic() - began, 3)
        counts = {str(fold): _by_value(right, data, rows, len(config.texts) + 1) for fold, rows in data.folds.items()}
        together.append(Together(model=model, right=counts))
    return _Answers(answers=answers, together=together, hits=hits, seconds=seconds)


def _gains(config: ZeroshotConfig, hits: Mapping[tuple[str, str], Tensor], data: SetData) -> Iterator[Gain]:
    """Compare every model with a head with the first one of the same towers without. hits: bool [N] of model, kind."""
    for model, own in config.models.items():
        bare = replace(own, head=None)
        plain = next((name for name, other in config.models.items() if other == bare), None)
        for kind in config.texts if own.head and plain else ():
            change = hits[model, kind].long() - hits[str(plain), kind].long() + 1
            counts = {str(fold): _by_value(change, data, rows, 3) for fold, rows in data.folds.items()}
            yield Gain(model=model, plain=str(plain), kind=label_of(kind), change=counts)


def answered(clips: Tensor, texts: Texts, model: ZeroshotModel, head: Tensor | None, data: SetData) -> Predictions:
    """Compute the logits [N K] of mean frame features [N D], as `zero_shot` does.

    Raises:
        NonFiniteLossError: logits that are not finite, naming the first clips.
    """
    known, layout = projected(texts.features, head), texts.layout.cpu()
    logits = class_logits(clips, layout, known, head=head, temperature=model.temperature)
    broken = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        got = f"{len(broken)} clips without ({', '.join(data.keys[row] for row in broken[:3])})"
        do = "Set precision=fp32, or check the weights and the head."
        raise NonFiniteLossError(message("zero-shot", expected="logits that are finite", got=got, do=do))
    return Predictions(labels=torch.from_numpy(data.labels), logits=logits)


def _by_fold(found: Predictions, data: SetData) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Count the confusions of each fold."""
    counts = {}
    for fold, rows in data.folds.items():
        at = torch.from_numpy(rows)
        matrix = confusion(found.logits[at], labels=found.labels[at], index=at, num_classes=len(data.emotions))
        counts[str(fold)] = _rows(matrix)
    return counts


def _by_value(values: Tensor, data: SetData, rows: Ids, width: int) -> tuple[tuple[int, ...], ...]:
    """Count the clips [K V] of a fold by class and value. values: int64 [N], from 0 to `width` - 1."""
    at = torch.from_numpy(rows)
    cells = torch.from_numpy(data.labels)[at] * width + values[at]
    return _rows(torch.bincount(cells, minlength=len(data.emotions) * width).view(-1, width))


def _rows(matrix: Tensor) -> tuple[tuple[int, ...], ...]:
    rows: Sequence[Sequence[int]] = matrix.tolist()
    return tuple(map(tuple, rows))


def _facts(name: str, own: ZeroshotModel, towers: Towers, features: FeatureSet) -> ModelFacts:
    head = Path(own.head) if own.head else None
    tower = released_tower(own)
    return ModelFacts(
        name=name,
        arch=own.towers.arch,
        weights=features.origin or own.towers.pretrained or f"random weights of seed {towers.config.seed}",
        head=head.name if head else "",
        head_sha256=hashlib.sha256(head.read_bytes()).hexdigest() if head else "",
        released=tower if head and released_head(head) == tower else "",
        tower=tower,
        normalisation=normalisation_words(own.clip_normalisation),
        temperature=own.temperature,
        size=towers.size,
        features=name_of(features.key),
        files=_files_of(features),
        head_note=other_weights(head, features.key["weights"]) if head else "",
    )


def _files_of(features: FeatureSet) -> dict[str, str]:
    """SHA-256 of the files of the towers that made features, by key of the towers."""
    of_key = {"arch": features.key["arch"], "pretrained": features.key["weights"]}
    return {key: found[SHA256] for key, found in of_key.items() if isinstance(found, Mapping)}


def released_tower(model: ZeroshotModel) -> str:
    """Return `B32`, `B16` or `L14` for OpenAI's CLIP as Exp-CLIP's release uses it; empty for any other."""
    towers = model.towers
    weights = "" if towers.pretrained is None else Path(towers.pretrained).name
    if weights not in ("openai", *OPENAI_FILES) or model.clip_normalisation or towers.image_size not in (None, 224):
        return ""
    return next((name for name, arch in ARCHS.items() if arch == towers.arch), "")
