"""Clips given as folders of pictures, shown as evaluation shows the clips of shards.

Letters: B clips of a batch, V views, T frames, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfer.data.config import DataConfig
from dfer.data.geometry import MAX_PIXELS, Picture, apply
from dfer.data.reader import Parts, Request
from dfer.data.shared_memory import empty, shared
from dfer.data.views import View, distinct, fixed_views
from dfer.errors import DataError, DferError, message
from dfer.media.frames import READ_TEXT, list_pictures
from dfer.media.pictures import MAX_FILE_BYTES, read_picture
from dfer.recognition import PADDING, BadClip


class FolderReader(Dataset[Parts | DferError]):
    """Reads batches of clips as `dfer.data.reader.Reader` does, out of folders of pictures; runs in worker processes. A
    clip that cannot be read becomes a row of padding, and is told in `bad`."""

    def __init__(self, folders: Sequence[Path], data: DataConfig, *, names: Sequence[str], batch: int) -> None:
        """names: keys of the clips. batch: clips of a batch, the last of which may have fewer."""
        self._folders, self._names, self._data, self._batch = folders, names, data, batch

    def requests(self) -> list[Request]:
        """One request for each batch, in order."""
        return [(0, 0, number) for number in range(-(-len(self._folders) // self._batch))]

    def __getitem__(self, request: Request) -> Parts | DferError:
        """Read the fields of a ClipBatch, and `bad`."""
        first, data = request[2] * self._batch, self._data
        rows = range(first, min(first + self._batch, len(self._folders)))
        shape = len(rows), data.num_views, data.frames, 3, data.size, data.size
        try:
            frames, index, bad = empty(shape, keys="batch"), torch.tensor(rows), []
            for row, at in enumerate(rows):
                try:
                    frames[row] = read_clip(self._folders[at], data)
                except DataError as error:
                    frames[row], index[row] = 0, PADDING
                    bad.append(BadClip(key=self._names[at], epoch=0, cause=str(error), replaced_by=""))
            index = shared(index.repeat_interleave(data.num_views), keys="batch")
        except DferError as error:
            return error
        return {"frames": frames.flatten(0, 1), "labels": None, "index": index, "bad": bad}


def read_clip(folder: Path, data: DataConfig) -> Tensor:
    """Read a folder's pictures as uint8 [V T C H W], the views of evaluation.

    Raises:
        DataError: the folder or its frames are missing, their order is ambiguous, or a picture cannot be read.
    """
    expected = f"a folder with {READ_TEXT} face frames in an order that their names tell"
    try:
        paths = [Path(entry.path) for entry in list_pictures(folder)]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(message(folder, expected=expected, got="no folder", do="Correct the path.")) from None
    except OSError as error:
        got = str(error.strerror)
        raise DataError(message(folder, expected=expected, got=got, do="Correct its permissions.")) from error
    except ValueError as error:
        do = "Give the cropped faces, one file a frame, named as 00012.jpg."
        raise DataError(message(folder, expected=expected, got=str(error), do=do)) from error
    views = fixed_views(data, len(paths))
    pictures = {at: _read_picture(paths[at]) for at in distinct(views).tolist()}
    rows = [[_seen(view, pictures[at], paths[at]) for at in view.positions.tolist()] for view in views]
    return torch.from_numpy(np.array(rows)).permute(0, 1, 4, 2, 3)


def _seen(view: View, picture: Picture, path: Path) -> Picture:
    try:
        return apply(view.seen(*picture.shape[:2]), picture)
    except ValueError as error:
        do = "Replace the file."
        raise DataError(message(path, expected="a picture of a face", got=str(error), do=do)) from error


def _read_picture(path: Path) -> Picture:
    expected = f"a whole JPEG, PNG, BMP, WebP or TIFF of at most {MAX_PIXELS:,} pixels"
    try:
        return read_picture(_read(path), max_pixels=MAX_PIXELS).rgb
    except ValueError as error:
        raise DataError(message(path, expected=expected, got=str(error), do="Replace the file.")) from error


def _read(path: Path) -> bytes:
    """Read a file, up to the largest size that a picture may have."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        do = "Correct its permissions or replace it."
        raise DataError(message(path, expected="to read it", got=str(error.strerror), do=do)) from error
    if len(data) > MAX_FILE_BYTES:
        expected = f"a picture of at most {MAX_FILE_BYTES >> 20} MiB"
        raise DataError(message(path, expected=expected, got="more", do="Replace the file."))
    return data
