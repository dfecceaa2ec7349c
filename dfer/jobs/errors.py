"""The most confident wrong answers of a run: from its predictions, with pictures out of its shards."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import simplejpeg

from dfer.config import load_text
from dfer.data.clips import ClipSet, emotions_for, fold_clips
from dfer.data.decode import Decoder, seen
from dfer.data.geometry import Resize
from dfer.data.splits import fold_of
from dfer.errors import CheckpointError, message
from dfer.evaluation.answers import read_answers
from dfer.evaluation.results import FoldResult, read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.fold_data import refuse_other_shards
from dfer.report.errors import ErrorPage, Mistake
from dfer.report.folds import fold_folders
from dfer.run.layout import CONFIG, MAX_CONFIG_BYTES, RESULT, finished, predictions_name
from dfer.storage import Folder
from dfer.store.format import Fold

SIDE = 112
"""Side of a picture in pixels."""


def worst(home: Folder, *, most: int, shards: str | None = None) -> ErrorPage:
    """Collect the most confident wrong answers of a run, or of all finished folds of a cross-validation.

    shards: where the shards are now; None = as in the configuration.

    Raises:
        CheckpointError: there is no result, no predictions, or the shards are others than the result's.
        DataError: a picture cannot be read.
    """
    folders = fold_folders(home) or {"": home}
    done = {name: folder for name, folder in folders.items() if finished(folder)}
    if not done:
        do = "Finish the run first: dfer train CONFIG."
        raise CheckpointError(message(home, expected="a finished run", got="none", do=do))
    found: list[tuple[Mistake, str, str]] = []
    wrong = clips = 0
    for name, folder in done.items():
        result = read_result(folder)
        mistakes = _mistakes(name, folder, result)
        wrong, clips = wrong + len(mistakes), clips + result.clips
        found += [(mistake, name, mistake.key) for mistake in mistakes]
    first = sorted(found, key=lambda each: (-each[0].probability, each[1], each[2]))[:most]
    shown = [mistake for mistake, _, _ in first]
    for name, folder in done.items():
        shown = _with_pictures(shown, name, folder, shards)
    result = read_result(next(iter(done.values())))
    return ErrorPage(
        run=home.name,
        method=result.method,
        data=result.data,
        clips=clips,
        wrong=wrong,
        mistakes=tuple(shown),
        warning=result.protocol.warning,
    )


def _mistakes(part: str, folder: Folder, result: FoldResult) -> list[Mistake]:
    answers = read_answers(folder, result)
    if answers is None:
        where, do = folder.where(predictions_name(RESULT)), "Evaluate again: dfer evaluate RUN."
        raise CheckpointError(message(where, expected="the predictions of the result", got="no such file", do=do))
    names = result.classes
    return [
        Mistake(
            part=part,
            key=answers.keys[row],
            truth=names[answers.labels[row]],
            predicted=names[answers.predicted[row]],
            probability=float(answers.probabilities[row, answers.predicted[row]]),
            of_truth=float(answers.probabilities[row, answers.labels[row]]),
        )
        for row in np.flatnonzero(~answers.right).tolist()
    ]


def _with_pictures(mistakes: Sequence[Mistake], part: str, folder: Folder, shards: str | None) -> list[Mistake]:
    """Add the pictures of the clips of one part."""
    if not any(mistake.part == part for mistake in mistakes):
        return list(mistakes)
    test = _test_clips(folder, shards)
    place = {key: index for index, key in enumerate(test.keys)}
    missing = next((each.key for each in mistakes if each.part == part and each.key not in place), None)
    if missing is not None:
        do = "Evaluate again: dfer evaluate RUN."
        where = folder.where(predictions_name(RESULT))
        raise CheckpointError(message(where, expected="keys of the test clips", got=missing, do=do))
    return [
        replace(each, pictures=_pictures(test, place[each.key])) if each.part == part else each for each in mistakes
    ]


def _test_clips(folder: Folder, shards: str | None) -> ClipSet:
    """Open the test clips of a run. Raises CheckpointError if its shards are others than the result's."""
    text = folder.read(CONFIG, most=MAX_CONFIG_BYTES) or b""
    config = load_text(text, RunConfig, where=folder.where(CONFIG))
    if shards is not None:
        config = replace(config, data=replace(config.data, shards=shards))
    store = config.data.store()
    refuse_other_shards(config, store, read_result(folder).manifest_sha256)
    fold = fold_of(store.manifest, config.data.protocol, config.fold)
    emotions = emotions_for(config.data.classes, store.manifest)
    return fold_clips(store, Fold(train=fold.test, test=fold.test), emotions=emotions)["test"]


def _pictures(clips: ClipSet, index: int) -> tuple[bytes, ...]:
    """Return first, middle and last frame of a clip as small JPEGs; fewer of a clip with fewer frames."""
    last = clips.num_frames(index) - 1
    positions = sorted({0, last // 2, last})
    where, decode, shown = clips.where(index), Decoder(), []
    for data in clips.read(index, positions):
        small = seen((Resize(SIDE, SIDE),), decode(data, where=where), where=where)
        shown.append(simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=82))
    return tuple(shown)
