"""Clips as folders of pictures: which ones are found, and what is said where there are none."""

from pathlib import Path

import pytest

from dfer.errors import DataError
from dfer.media.clip_folders import ClipFolders

KINDS = ".jpg, .png, .bmp, .webp or .tif"
EXPECTED = f"expected a folder whose folders are clips of {KINDS} frames, or a text file that lists"


def put(path: Path, size: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_every_folder_with_pictures_is_a_clip_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/deep/er/1.PNG", "a/deep/2.webp", "a/3.tif", ".hidden/1.jpg", "c/._1.jpg", "d/notes.txt"):
        put(tmp_path / name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "e").symlink_to(tmp_path.parent / f"{tmp_path.name}_outside", target_is_directory=True)
    found = ClipFolders.open(tmp_path)
    assert found.names == ("a", "a/deep", "a/deep/er", "b") and len(found) == 4
    assert found.folders == tuple(tmp_path / name for name in found.names)
    assert ClipFolders.open(tmp_path / "a/deep/er").names == (".",)


def test_contents_are_the_names_and_sizes_of_the_pictures(tmp_path: Path) -> None:
    for clip in ("a", "b", "c", "d"):
        put(tmp_path / clip / "1.jpg")
    put(tmp_path / "b" / "1.jpg", 4)
    put(tmp_path / "c" / "2.jpg")
    put(tmp_path / "d" / "notes.txt")
    first, longer, more, same = ClipFolders.open(tmp_path).contents
    assert len({first, longer, more}) == 3 and same == first


def test_a_file_lists_clips_relative_to_itself(tmp_path: Path) -> None:
    put(tmp_path / "clips" / "b" / "1.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# some\nclips/b\n\n  {tmp_path / 'clips'} \nmissing\n")
    found = ClipFolders.open(listed)
    assert found.names == ("clips/b", str(tmp_path / "clips"), "missing")
    assert found.folders[0] == tmp_path / "clips/b" and found.contents[2] == "" != found.contents[0]
    listed.write_text("a\nb\na\n")
    with pytest.raises(DataError) as caught:
        ClipFolders.open(listed)
    assert str(caught.value) == f"{listed}, line 3: expected every clip once, got a again. Remove the line."


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"\xff\xd8\xff", "bytes that are no UTF-8. Write a folder of frames on each line."),
        (b"a\0b", "a binary file. Write a folder of frames on each line."),
        (b"# nothing\n", "no clips. Give the cropped faces, one file a frame, a folder a clip."),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, data: bytes, got: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        ClipFolders.open(path)
    assert str(caught.value) == f"{path}: {EXPECTED} such folders, got {got}"


def test_no_clips(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, got in ((tmp_path, "no clips. Give the cropped faces"), (tmp_path / "gone", "neither. Correct the path")):
        with pytest.raises(DataError) as caught:
            ClipFolders.open(path)
        assert str(caught.value).startswith(f"{path}: {EXPECTED} such folders, got {got}")
