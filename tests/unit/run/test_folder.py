"""The run folder: made, continued, refused."""

import json
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from dfer.config import key, to_yaml
from dfer.distributed import World, on_first
from dfer.errors import CheckpointError, StorageError, UsageError
from dfer.run import folder
from dfer.storage import Folder

WORLD = World()


@dataclass(frozen=True, kw_only=True)
class Data:
    shards: str = key("here", path=True, resume="free")
    workers: int = key(2, resume="free")
    frames: int = 16


@dataclass(frozen=True, kw_only=True)
class Towers:
    pretrained: str | None = key(None, file=True)


@dataclass(frozen=True, kw_only=True)
class Model:
    towers: Towers = field(default_factory=Towers)
    released: str | None = key(None, file=True)
    start: str | None = key(None, path=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Of the shape of a RunConfig: the folder reads the facts that stand at the keys."""

    run: str = key("r", resume="free")
    seed: int = 1
    micro_batch: int | None = key(None, resume="free")
    log_every: int = key(1, resume="free")
    published: str | None = key(None, resume="free")
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)


def prepare(run: Path, config: Config, world: World, *, finished: bool = False) -> None:
    """As a run does it; in between it looks at everything else."""
    folder.check(Folder(run), config)
    on_first(lambda: folder.write(Folder(run), config, world, finished=finished), world)


def started(tmp_path: Path) -> Path:
    prepare(tmp_path / "run", Config(), WORLD)
    return tmp_path / "run"


def test_it_holds_the_configuration_and_the_environment(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json"]
    assert (run / "config.yaml").read_text() == to_yaml(Config())
    said = json.loads((run / "environment.json").read_text())
    assert {"command", "revision", "python", "packages", "processes", "device"} <= said.keys()
    assert said["packages"].keys() >= {"torch", "open_clip_torch", "numpy", "dfer"}


def test_the_same_configuration_continues(tmp_path: Path) -> None:
    run = started(tmp_path)
    prepare(run, Config(), WORLD)


@pytest.mark.parametrize(
    "changed",
    [
        Config(run="elsewhere"),
        Config(micro_batch=2),
        Config(log_every=50),
        Config(published="59.61"),
        Config(data=Data(shards="moved", workers=0)),
    ],
    ids=str,
)
def test_what_says_where_and_how_fast_may_change_and_is_taken_over(tmp_path: Path, changed: Config) -> None:
    run = started(tmp_path)
    prepare(run, changed, WORLD)
    assert (run / "config.yaml").read_text() == to_yaml(changed)


def test_what_is_computed_may_not_change(tmp_path: Path) -> None:
    run = started(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        prepare(run, Config(seed=2, data=Data(frames=8)), WORLD)
    assert str(caught.value) == (
        f"{run}: expected the configuration it was started with, got 2 changed keys (data.frames was 16, now 8; "
        "seed was 1, now 2). Choose another folder with run=FOLDER, or change them back."
    )
    assert (run / "config.yaml").read_text() == to_yaml(Config())


def test_files_of_weights_may_lie_elsewhere_under_their_name(tmp_path: Path) -> None:
    """Such as the folder that Ray unpacks a job into, another one each time."""
    run = tmp_path / "run"
    begun = Config(model=Model(towers=Towers(pretrained="w/clip.pt"), released="/a/dfer.pth"))
    prepare(run, begun, WORLD)
    prepare(run, Config(model=Model(towers=Towers(pretrained="/b/w/clip.pt"), released="dfer.pth")), WORLD)
    for other in (Towers(pretrained="/b/w/other.pt"), Towers()):
        with pytest.raises(CheckpointError, match=r"1 changed keys \(model.towers.pretrained was 'clip.pt', now"):
            prepare(run, Config(model=Model(towers=other, released="dfer.pth")), WORLD)


def test_a_run_to_begin_from_is_its_whole_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds of all runs are called alike; a path may be written in several ways."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    prepare(run, Config(model=Model(start="a/fold_1")), WORLD)
    for same in (f"{tmp_path}/a/fold_1", "./a/fold_1/"):
        prepare(run, Config(model=Model(start=same)), WORLD)
    for other in ("b/fold_1", "s3://a/fold_1", None):
        with pytest.raises(CheckpointError, match=rf"1 changed keys \(model.start was '{tmp_path}/a/fold_1', now "):
            prepare(run, Config(model=Model(start=other)), WORLD)


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    folder.check(Folder(tmp_path / "run"), Config())
    assert not (tmp_path / "run").exists()
    run = started(tmp_path)
    folder.check(Folder(run), Config(log_every=50))
    assert (run / "config.yaml").read_text() == to_yaml(Config())


def test_a_key_that_is_gone_or_new_is_a_change(tmp_path: Path) -> None:
    run = started(tmp_path)
    plain = yaml.safe_load((run / "config.yaml").read_text())
    del plain["seed"]
    (run / "config.yaml").write_text(yaml.safe_dump({**plain, "older": 3}))
    with pytest.raises(CheckpointError, match=r"2 changed keys \(older was 3, now None; seed was None, now 1\)"):
        prepare(run, Config(), WORLD)


def test_the_environment_of_a_finished_run_stands(tmp_path: Path) -> None:
    run = started(tmp_path)
    (run / "environment.json").write_text("as it was")
    prepare(run, replace(Config(), run="moved"), WORLD, finished=True)
    assert (run / "environment.json").read_text() == "as it was"
    prepare(run, Config(), WORLD)
    assert (run / "environment.json").read_text() != "as it was"


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError) as caught:
        prepare(tmp_path, Config(), WORLD)
    assert str(caught.value).startswith(f"{tmp_path}: expected an empty folder or a run folder with config.yaml, got ")
    assert "run=FOLDER" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UsageError, match="expected an empty folder"):
        prepare(tmp_path / "run", Config(), WORLD)
    with pytest.raises(StorageError, match=r"expected to write it, got Not a directory"):
        prepare(tmp_path / "run" / "below", Config(), WORLD)


def test_a_process_killed_at_its_first_file_leaves_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.tmp").write_text("se")
    prepare(tmp_path, Config(), WORLD)
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not valid YAML"), ("- 1", "expected a configuration, got list"), ("", "got NoneType")]
)
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    run = started(tmp_path)
    (run / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        prepare(run, Config(), WORLD)
    assert str(caught.value).startswith(f"{run}/config.yaml: ") and said in str(caught.value)
    assert "Choose another run folder." in str(caught.value) and "\n" not in str(caught.value)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    prepare(tmp_path / "run", Config(), World(rank=1, size=2))
    assert not (tmp_path / "run").exists()


def test_the_revision_says_when_there_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "folder.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("DFER_REVISION", raising=False)
    assert folder.revision() == "unknown"
    monkeypatch.setenv("DFER_REVISION", "0123abcd")
    assert folder.revision() == "0123abcd"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_the_revision_needs_no_git(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("DFER_REVISION", "0123abcd")
    assert folder.revision() == "0123abcd"


def test_the_revision_of_a_checkout_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout="89abcdef-dirty\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setenv("DFER_REVISION", "0123abcd")
    assert folder.revision() == "89abcdef-dirty"


def test_a_key_that_came_after_the_run_was_started_has_its_default(tmp_path: Path) -> None:
    run = started(tmp_path)
    path = run / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    del plain["seed"]
    path.write_text(yaml.safe_dump(plain))
    prepare(run, Config(), WORLD)
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(CheckpointError, match="seed was 1, now 2"):
        prepare(run, Config(seed=2), WORLD)
