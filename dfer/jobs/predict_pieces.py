"""A part of a prediction: the clips of its pieces through the model, a table a piece.

Letters: B clips of a batch, V views, T frames, C colours, H height, W width, K classes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from dfer.data.folders import FolderReader
from dfer.data.loader import Loader, read_batches
from dfer.distributed import World
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.interruption import Stop
from dfer.jobs.fold_data import refuse_little_memory
from dfer.jobs.parts import Part
from dfer.jobs.pieces import Progress, agree, mark_done, share
from dfer.jobs.predict import answering_model
from dfer.jobs.predict_job import PredictConfig, Work
from dfer.jobs.predict_table import PIECES, Row, piece_csv
from dfer.recognition import Batch, ClipBatch, Recognition
from dfer.storage import Folder
from dfer.training.loop import stopped

NOT_FINITE = "expected finite logits, got NaN or infinity. Predict it with precision=fp32."
Read = tuple[ClipBatch, dict[str, str]]
"""A batch of all its clips' views, and the errors of the clips that could not be read, by key."""
Forward = Callable[[Batch], Recognition]


def answer(config: PredictConfig, part: Part, work: Work, stop: Stop) -> str:
    """Make the pieces of a part that are not there yet; returns a line about them.

    Raises:
        CheckpointError: the job was begun with another model or other clips, or the weights do not fit.
        DataError: the shards were built anew meanwhile. StorageError. GpuMemoryError.
        StoppedError: a stop was requested; finished pieces are kept.
    """
    home = Folder(config.run, what="run")
    agree(home, work.plan)
    mine, standing = share(work.plan.pieces, part, of=config.workers), {*(home / PIECES).children()}
    todo = [number for number in mine if work.names[number] not in standing]
    clips = sum(len(work.grid[number]) for number in mine)
    left = sum(len(work.grid[number]) for number in todo)
    progress = Progress(part, what="predict", total=clips, standing=clips - left)
    if todo:
        _make(work, todo, home / PIECES, progress, stop)
    progress.end()
    mark_done(part, work.plan, of=config.workers, pieces=[work.names[number] for number in mine])
    return f"{part.name}: {clips:,} clips in {len(mine)} pieces, {len(mine) - len(todo)} of them made before"


def _make(work: Work, todo: Sequence[int], folder: Folder, progress: Progress, stop: Stop) -> None:
    config, world = work.answering.config, World()
    with enough_gpu_memory():
        model, classes = answering_model(config, world, saved=work.answering.saved)
        set_tf32(config.engine.tf32)
        forward = inference(model, precision=work.precision, device=world.device)
    progress.start()
    wanted = [at for number in todo for at in work.grid[number]]
    keys = [work.source.keys[at] for at in wanted]
    pieces = deque((work.names[number], len(work.grid[number])) for number in todo)
    rows: list[Row] = []
    for number, (batch, errors) in enumerate(_batches(work, wanted, keys)):
        first = number * work.grid.batch
        made = _rows(forward, batch, keys[first : first + work.grid.batch], classes, errors, views=work.data.num_views)
        rows += made
        if len(rows) == pieces[0][1]:  # no batch crosses the end of a piece
            folder.write(pieces.popleft()[0], piece_csv(rows, classes))
            rows = []
        progress.add(len(made))
        if pieces and stop.requested:
            raise stopped(stop, at=f"the predictions in {folder}")
    assert not rows and not pieces, "every clip is in one batch"


def _batches(work: Work, wanted: Sequence[int], keys: Sequence[str]) -> Iterator[Read]:
    """Yield the clips at these positions, in batches that do not cross pieces."""
    found = work.source.folders
    if found is not None:
        reader = FolderReader([found.folders[at] for at in wanted], work.data, names=keys, batch=work.grid.batch)
        for parts in read_batches(reader, reader.requests(), workers=work.data.workers):
            errors = {bad.key: bad.cause for bad in parts.pop("bad")}
            yield ClipBatch(**parts), errors
        return
    assert work.source.clips is not None
    clips = work.source.clips.select(wanted)
    loader = Loader(
        clips,
        work.data,
        world=World(),
        seed=work.answering.config.seed,
        train=False,
        global_batch=work.grid.batch,
        micro_batch=work.grid.batch,
        skip_bad=True,
    )
    refuse_little_memory([loader])
    for batch in loader.epoch(0):
        errors = {bad.key: bad.cause for bad in loader.take_bad()}
        if errors:
            clips.store.check_unchanged(trust_stamp=False)  # the whole folder may have been replaced
        yield batch, errors


def _rows(
    forward: Forward,
    batch: ClipBatch,
    keys: Sequence[str],
    classes: Sequence[str],
    errors: dict[str, str],
    *,
    views: int,
) -> list[Row]:
    """Answer for a batch. keys: of its clips, in order. errors: of those that could not be read."""
    unlabelled = replace(batch, labels=torch.zeros_like(batch.index))  # no method reads them
    with enough_gpu_memory():
        logits = forward(unlabelled.to(World().device)).logits.float()
    logits = logits.view(-1, views, len(classes)).mean(1).cpu()
    finite, best = logits.isfinite().all(-1).tolist(), logits.argmax(-1).tolist()
    shares, rows = logits.double().softmax(-1).tolist(), []
    for at, key in enumerate(keys):
        error = errors.get(key, "" if finite[at] else NOT_FINITE)
        answered = Row(key=key, predicted=classes[best[at]], shares=tuple(shares[at]))
        rows.append(Row(key=key, error=error) if error else answered)
    assert len(rows) == len(finite), "one row a clip"
    return rows
