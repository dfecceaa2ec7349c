"""Batches of single pictures, read ahead by worker processes: out of a folder, or the middle frames of clips in shards.

Letters: B pictures, H height, W width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfer.data.clips import ClipSet
from dfer.data.config import DataConfig
from dfer.data.loader import Loader, read_batches
from dfer.data.pictures import PictureFolder
from dfer.data.reader import Parts, Request
from dfer.data.shared_memory import empty
from dfer.distributed import World
from dfer.errors import DferError
from dfer.recognition import PADDING

KEYS = "pairs.batch"


class _FolderPictures(Dataset[Parts | DferError]):
    """Reads the pictures of one batch; runs in worker processes."""

    def __init__(self, folder: PictureFolder, batches: Sequence[Sequence[int]], size: int) -> None:
        self._folder, self._batches, self._size = folder, batches, size

    def __getitem__(self, request: Request) -> Parts | DferError:
        rows = self._batches[request[2]]
        try:
            frames = empty((len(rows), self._size, self._size, 3), keys=KEYS)
            for row, index in enumerate(rows):
                frames[row] = torch.from_numpy(self._folder.read(index, self._size).copy())
        except DferError as error:
            return error
        return {"frames": frames}


def folder_batches(
    folder: PictureFolder, batches: Sequence[Sequence[int]], *, size: int, workers: int
) -> Iterator[Tensor]:
    """Yield pictures, uint8 [B 3 H W], of each batch of positions. Raises DataError, StorageError."""
    reader = _FolderPictures(folder, batches, size)
    requests = [(0, 0, number) for number in range(len(batches))]
    for parts in read_batches(reader, requests, workers=workers):
        yield parts["frames"].permute(0, 3, 1, 2).contiguous()


def shard_batches(
    clips: ClipSet, batches: Sequence[Sequence[int]], config: DataConfig, *, most: int
) -> Iterator[Tensor]:
    """Yield the middle frames of clips, uint8 [B 3 H W], of each batch of positions. Raises DataError, StorageError.

    batches: all have `most` clips, apart from the last.
    """
    chosen = clips.select([index for batch in batches for index in batch])
    if not batches:
        return
    loader = Loader(chosen, config, world=World(), seed=0, train=False, global_batch=most, micro_batch=most)
    for batch in loader.epoch(0):
        yield batch.frames[batch.index != PADDING, 0]
