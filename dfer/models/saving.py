"""Write saved models and other folders of a model's files, whole or not at all. Imports no torch.

A folder is prepared beside its place and moved there by renaming it. Where folders cannot be moved, as in object
stores, the file without which the folder does not count is written last.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer import config as plain_config
from dfer.errors import UsageError, message
from dfer.local_files import sync
from dfer.models.config import ModelConfig
from dfer.models.files import files
from dfer.models.saved import CARD, CONFIG, WEIGHTS, SavedConfig, file_name, sha256_of
from dfer.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor


def prepared(model: ModelConfig) -> tuple[ModelConfig, dict[str, Path]]:
    """Return a model's configuration as a saved model holds it, and the files that go with it by key.

    Places of weights are removed; files of the user's get the names they have in the folder.
    """
    model = replace(model, start=None)
    if model.towers is not None:  # a method need not have a CLIP
        model = replace(model, towers=replace(model.towers, pretrained=None))
    own = {key: Path(path) for key, path in files(model, weights=False).items()}
    return plain_config.changed(model, {key: file_name(key, str(path)) for key, path in own.items()}), own


def save(
    out: Folder,
    found: SavedConfig,
    weights: Mapping[str, "Tensor"],
    *,
    card: Callable[[SavedConfig], str],
    own: Mapping[str, Path],
) -> tuple[SavedConfig, bool]:
    """Write a saved model, whole or not at all. Returns its configuration, and False if OUT held the same one already.

    found: sha256, bytes and files are set here. card: gives the text of README.md. own: paths of the files by key, as
    `prepared` returns them.

    Raises:
        UsageError: OUT holds something else. StorageError: it cannot be written.
    """
    with staging(out) as staged:
        write_tensors(weights, staged / WEIGHTS)
        found = replace(
            found,
            sha256=sha256_of(staged / WEIGHTS),
            bytes=(staged / WEIGHTS).stat().st_size,
            files={key: file_name(key, str(path)) for key, path in own.items()},
        )
        for key, path in own.items():
            shutil.copyfile(path, staged / found.files[key])
        (staged / CARD).write_text(card(found), encoding="utf-8")
        (staged / CONFIG).write_text(plain_config.to_yaml(found), encoding="utf-8")
        return found, move_into_place(staged, out, last=CONFIG)


@contextmanager
def staging(out: Folder) -> Iterator[Path]:
    """Make an empty folder to prepare OUT in, removed at the end if it was not moved. Raises StorageError."""
    with tempfile.TemporaryDirectory(prefix=".dfer-model-", dir=_near(out)) as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir()
        yield staged


def _near(out: Folder) -> Path | None:
    """The folder beside which OUT is prepared, so that it is moved on one file system. Raises StorageError."""
    if out.local is None:
        return None
    with out.wrap_errors("", "to write there"):
        out.local.absolute().parent.mkdir(parents=True, exist_ok=True)
    out.check_writable()
    return out.local.absolute().parent


def write_tensors(weights: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, with the umask's mode. metadata: instead of safetensors' usual one."""
    from safetensors.torch import save_file

    save_file(
        {name: value.contiguous() for name, value in weights.items()}, path, metadata=dict(metadata or {"format": "pt"})
    )
    path.chmod(0o666 & ~_umask(path.parent))


def _umask(folder: Path) -> int:
    """The umask as a new file in a folder shows it; safetensors ignores it."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    return 0o666 & ~mode


def move_into_place(staged: Path, out: Folder, *, last: str) -> bool:
    """Move the files of a prepared folder to OUT; False if OUT holds the same files already. last: the file without
    which the folder does not count, written last where folders cannot be moved.

    Raises:
        UsageError: OUT holds something else. StorageError: it cannot be written; OUT is then as it was.
    """
    names = sorted(path.name for path in staged.iterdir())
    if _is_same(staged, out, names):
        return False
    if out.local is not None:
        with out.wrap_errors("", "to write it"):
            for path in (*staged.iterdir(), staged):
                sync(path)
            staged.rename(out.local)  # replaces an empty folder
        return True
    try:
        for name in sorted(names, key=lambda name: name == last):
            with out.whole(name) as path:
                shutil.copyfile(staged / name, path)
    except BaseException:
        out.remove_all()
        raise
    return True


def _is_same(staged: Path, out: Folder, names: list[str]) -> bool:
    """Whether OUT holds these files and no others; False if it is empty. Raises UsageError if it holds others."""
    there = ["a file"] if out.local is not None and out.local.is_file() else out.children()
    if not there:
        return False
    sizes = [(staged / name).stat().st_size == out.size(name) for name in names] if there == names else [False]
    if all(sizes) and all(_same_file(staged / name, out, name) for name in names):
        return True
    got = f"one with {', '.join(there[:4])}" if there != names else "another saved model"
    do = "Choose another OUT, or remove that one first."
    raise UsageError(message(out, expected="no folder, an empty one, or the same model", got=got, do=do))


def _same_file(path: Path, out: Folder, name: str) -> bool:
    if out.local is not None:
        return sha256_of(path) == sha256_of(out.local / name)
    with tempfile.TemporaryDirectory(prefix="dfer-model-") as temporary:
        out.fetch(name, Path(temporary) / "file")
        return sha256_of(path) == sha256_of(Path(temporary) / "file")
