"""Reading shard folders: local, remote, and everything that can be wrong with them."""

import hashlib
import http.server
import json
import pickle
import socket
import threading
from pathlib import Path

import fsspec
import pytest

from dfer.data.clips import ClipSet
from dfer.emotions import label_set
from dfer.errors import DataError, DferError, StorageError, UsageError
from dfer.storage import Retry
from dfer.store.cache import Cache
from dfer.store.shards import Store
from tests.unit.data.shardkit import Clip, jpeg, write_shards

FRAMES = [b"first" * 150, b"second" * 7, b"third"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [
        [Clip(key="a/1", frames=FRAMES, subject="x"), Clip(key="b", label=3)],
        [Clip(key="c", label=6, frames=FRAMES[::-1])],
    ]
    return write_shards(tmp_path / "shards", {"fold_1": shards, "fold_2": [[Clip(key="d", label=3)]]})


QUICK = Retry(attempts=3, base_s=0.001, timeout_s=5)


def opened(folder: Path | str, *partitions: str, classes: str = "basic7", cache: Cache | None = None) -> ClipSet:
    store = Store(str(folder), cache=cache, retry=QUICK)
    return ClipSet.open(store, partitions or ("fold_1",), emotions=label_set(classes))


def test_clips_labels_subjects_and_counts(folder):
    clips = opened(folder, "fold_1", "fold_2")
    assert len(clips) == 4
    assert clips.keys == ["a/1", "b", "c", "d"]
    assert clips.labels.tolist() == [0, 3, 6, 3]
    assert clips.subjects == ["x", None, None, None]
    assert clips.counts.tolist() == [1, 0, 0, 2, 0, 0, 1]
    assert clips.shard_of.tolist() == [0, 0, 1, 2]


def test_select_gives_these_clips_in_this_order(folder):
    clips = opened(folder, "fold_1", "fold_2").select([3, 2]).select([1, 0])
    assert clips.keys == ["c", "d"]
    assert clips.labels.tolist() == [6, 3]
    assert [bytes(x) for x in clips.read(0, [2, 0])] == [FRAMES[0], FRAMES[2]]


def test_frames_are_the_bytes_of_the_tar(folder):
    clips = opened(folder)
    assert [clips.num_frames(i) for i in range(3)] == [3, 1, 3]
    assert [bytes(x) for x in clips.read(0, [0, 1, 2])] == FRAMES
    assert [bytes(x) for x in clips.read(2, [1])] == [FRAMES[1]]


def test_frames_follow_their_numbers_past_999(tmp_path):
    """Names of four digits sort before those of three as text; order is the index's, not the names'."""
    frames = [b"%d" % i for i in range(1205)]
    clips = opened(write_shards(tmp_path / "s", {"fold_1": [[Clip(key="long", frames=frames)]]}))
    assert [bytes(x) for x in clips.read(0, [0, 2, 10, 100, 101, 999, 1000, 1204])] == [
        b"0",
        b"2",
        b"10",
        b"100",
        b"101",
        b"999",
        b"1000",
        b"1204",
    ]


def test_a_used_store_can_be_pickled_and_read_again(folder):
    clips = opened(folder)
    clips.read(0, [0])
    copy = pickle.loads(pickle.dumps(clips))
    assert [bytes(x) for x in copy.read(0, [0])] == FRAMES[:1]


def test_any_fsspec_url_reads_the_same(folder, tmp_path):
    empty = Cache(tmp_path / "cache", budget=2**30)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder) + "/", "/remote/", recursive=True)
    try:
        clips = opened("memory://remote")
        assert [bytes(x) for x in clips.read(0, [2, 0])] == [FRAMES[2], FRAMES[0]]
        memory.pipe("/remote/fold_1/00000.tar", b"short")
        with pytest.raises(DataError, match=r"fold_1/00000.tar: expected .* bytes as the manifest says, got 5"):
            opened("memory://remote", cache=empty).read(0, [0])
    finally:
        memory.rm("/remote", recursive=True)


def test_more_shards_than_may_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("dfer.store.local.MAX_OPEN", 2)
    shards = [[Clip(key=f"k{i}", frames=[b"%d" % i * 600])] for i in range(5)]
    clips = opened(write_shards(tmp_path / "s", {"fold_1": shards}))
    kept = {i: clips.read(i, [0])[0] for i in (0, 1, 2, 3, 4, 0)}
    assert all(bytes(view) == b"%d" % i * 600 for i, view in kept.items())


def expect(folder: Path, error: type[DferError], *texts: str, exit_code: int) -> None:
    with pytest.raises(error) as caught:
        opened(folder).read(0, [0])
    for text in texts:
        assert text in str(caught.value)
    assert caught.value.exit_code == exit_code


def test_manifest_missing(folder):
    (folder / "manifest.json").unlink()
    expect(
        folder,
        DataError,
        f"{folder}/manifest.json: expected the manifest that a finished build writes last",
        "got no such file. Correct data.shards, or run `dfer-shards build` to its end.",
        exit_code=3,
    )


def test_folder_missing(tmp_path):
    expect(tmp_path / "nothing", DataError, "nothing/manifest.json: expected the manifest", exit_code=3)


def test_manifest_of_another_version(folder):
    plain = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(plain | {"version": 99}))
    expect(folder, DataError, "manifest.json: expected format version 3, got 99. Build the shards again", exit_code=3)


def test_manifest_that_is_not_json(folder):
    (folder / "manifest.json").write_text("{")
    expect(folder, DataError, "manifest.json: expected JSON", exit_code=3)


def test_index_with_another_hash(folder):
    path = folder / "fold_1" / "00000.index.json"
    path.write_text(path.read_text().replace('"label": [0, 3]', '"label": [0, 2]'))
    got = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    expect(folder, DataError, "00000.index.json: expected sha256 ", f"got {got}...", exit_code=3)


def test_index_missing(folder):
    (folder / "fold_1" / "00000.index.json").unlink()
    expect(folder, DataError, "00000.index.json: expected a file of the shard folder, got no such file", exit_code=3)


@pytest.mark.parametrize("change", [-1, -5000, 512])
def test_shard_of_another_size(folder, change):
    path = folder / "fold_1" / "00000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    expect(
        folder,
        DataError,
        f"fold_1/00000.tar: expected {len(data)} bytes as the manifest says",
        f"got {len(data) + change}. The copy is incomplete",
        exit_code=3,
    )


def test_shard_missing(folder):
    (folder / "fold_1" / "00000.tar").unlink()
    expect(folder, DataError, "fold_1/00000.tar: expected a file of the shard folder", exit_code=3)


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dfer.store.ranges.open", refuse, raising=False)
    expect(folder, StorageError, "manifest.json: expected to read it, got ", "Permission denied", exit_code=6)


def test_s3_without_credentials(no_credentials):
    with pytest.raises(StorageError) as caught:
        Store("s3://no-such-bucket/dfew", retry=QUICK)
    assert str(caught.value) == (
        "s3://no-such-bucket/dfew/manifest.json: expected to read it, got Unable to locate credentials. "
        "Check the URL, the network and the credentials that the store needs."
    )
    assert caught.value.exit_code == 6


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_a_server_that_does_not_answer():
    url = f"http://127.0.0.1:{free_port()}/dfew"
    with pytest.raises(StorageError) as caught:
        Store(url, retry=QUICK)
    text = str(caught.value)
    assert text.startswith(f"{url}/manifest.json: expected to read it, got ")
    assert text.endswith("(3 attempts). Check the URL, the network and the credentials that the store needs.")


class Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404 if "absent" in self.path else 500)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_answers_with_an_error():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            with pytest.raises(StorageError, match=r"got 500, .* Check the URL, the network") as caught:
                Store(f"http://127.0.0.1:{server.server_port}/dfew", retry=QUICK)
            assert caught.value.exit_code == 6
            with pytest.raises(DataError, match=r"absent/manifest.json: expected the manifest .* got no such file"):
                Store(f"http://127.0.0.1:{server.server_port}/absent")
        finally:
            server.shutdown()


def test_credentials_in_a_url_are_not_told(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no answer from ftp://me:open-sesame@host/dfew/manifest.json?sig=open-sesame, sorry")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(StorageError) as caught:
        Store("ftp://host/dfew")
    assert "open-sesame" not in str(caught.value)
    assert str(caught.value).startswith("ftp://host/dfew: expected to open it, got no answer from ftp://")
    assert ", sorry. Check the URL" in str(caught.value)


def test_credentials_in_a_url_are_refused():
    with pytest.raises(UsageError, match=r"^ftp://host/x: expected a URL without credentials, got some in it. Take"):
        Store("ftp://me:open-sesame@host/x")


def test_an_unknown_scheme():
    with pytest.raises(
        UsageError, match=r"nowhere://x: expected a folder or an fsspec URL, .* Correct data.shards"
    ) as e:
        Store("nowhere://x")
    assert e.value.exit_code == 2


def test_an_unknown_partition_lists_those_there_are(folder):
    with pytest.raises(DataError, match="expected partitions out of fold_1, fold_2, got fold_9"):
        opened(folder, "fold_9")


def test_classes_that_do_not_fit_the_shards(folder):
    with pytest.raises(UsageError) as caught:
        opened(folder, classes="mafw11")
    text = str(caught.value)
    assert f"{folder}/manifest.json: expected the 11 classes happiness, " in text
    assert "got 7 without contempt, anxiety, helplessness, disappointment: happiness, sadness, neutral," in text
    assert "disgust, fear. Set data.classes=basic7" in text
    assert caught.value.exit_code == 2


def test_classes_of_no_known_set(tmp_path):
    write_shards(tmp_path / "s", {"fold_1": [[Clip(key="a")]]}, classes=["happiness", "boredom"])
    expected = r"got 2 without sadness, .*: happiness, boredom\. List the classes you want in data\.classes, by name"
    with pytest.raises(UsageError, match=expected):
        opened(tmp_path / "s")


def test_labels_follow_the_names_not_the_numbers(tmp_path):
    """Shards that number anger 0 and happiness 6 train the model's classes of those names."""
    classes = ["anger", "sadness", "neutral", "fear", "surprise", "disgust", "happiness"]
    clips = [Clip(key=name, label=i, frames=[jpeg(1)]) for i, name in enumerate(classes)]
    opened_clips = opened(write_shards(tmp_path / "s", {"fold_1": [clips]}, classes=classes))
    names = label_set("basic7").names
    assert [names[label] for label in opened_clips.labels] == opened_clips.keys
