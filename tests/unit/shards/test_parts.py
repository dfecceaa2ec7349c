"""A build in parts: the same bytes for any number of parts, whatever is killed, repeated, missing or run twice."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfer.errors import DataError, StorageError, UsageError
from dfer.storage import Folder
from shards import parts, shard
from shards.__main__ import main
from shards.build import Build, Made, build
from shards.output import only_writer
from shards.parts import BuildPart, Finished
from shards.plan import plan
from shards.shard import BuildOptions, ShardTask, plan_shards
from shards.sources import SOURCES
from shards.sources.clips import RawSet
from tests.unit.shards import rawkit
from tests.unit.shards.test_build import snapshot, spoil, times

SMALL = BuildOptions(max_side=64, clips_per_shard=2)
OPTIONS = ("--max-side", "64", "--clips-per-shard", "2")
KILLED_AT = """
import os, signal, sys
from shards import __main__, shard
left, store_frame = int(sys.argv[1]), shard.store_frame
def counted(*arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return store_frame(*arguments, **options)
shard.store_frame = counted
sys.exit(__main__.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 clips: ten shards of SMALL, three clips a partition."""
    return rawkit.dfew(tmp_path_factory.mktemp("once") / "DFEW", clips=15)


@pytest.fixture(scope="module")
def whole(once: Path) -> dict[str, bytes]:
    """What a build without parts writes."""
    build(read(once), str(once.parent / "whole"), SMALL, progress=False)
    return snapshot(once.parent / "whole")


@pytest.fixture
def raw(once: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil, with the times of the files."""
    return Path(shutil.copytree(once, tmp_path / "DFEW"))


def read(root: Path) -> RawSet:
    return SOURCES["dfew"](root)


def part(root: Path, out: object, number: int, of: int, **more: Any) -> Made:
    return parts.make(read(root), str(out), SMALL, BuildPart(number=number, of=of), progress=False, **more)


def finish(root: Path, out: object, of: int, **more: Any) -> Finished:
    return parts.finish(read(root), str(out), SMALL, of=of, advice=parts.ByHand("COMMAND"), progress=False, **more)


def run(step: str, value: object, raw: Path, out: Path, *more: object) -> int:
    words = ["build", "dfew", raw, out, *OPTIONS, "--jobs", 1, "--no-progress", step, value, *more]
    return main([*map(str, words)])


@pytest.mark.parametrize("of", [1, 2, 3, 5, 13])
def test_any_number_of_parts_gives_the_bytes_of_one_build(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], of: int
) -> None:
    out = tmp_path / "out"
    made = [part(raw, out, number, of) for number in reversed(range(1, of + 1))]
    assert sum(done.new for done in made) == 10 and max(done.new for done in made) == -(-10 // of)
    assert "manifest.json" not in snapshot(out)
    done = finish(raw, out, of)
    assert snapshot(out) == whole
    assert done.manifest == build(read(raw), str(out), SMALL, progress=False).manifest and not done.already


def test_any_fsspec_url(raw: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = Folder(f"memory://{tmp_path.name}")
    for number in (1, 2):
        part(raw, out, number, 2)
    finish(raw, out, 2)
    assert {name: out.read(name) for name in out.names()} == whole


def test_hosts_may_have_the_raw_files_in_folders_of_their_own(
    raw: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    shutil.copytree(raw, tmp_path / "elsewhere" / "DFEW")  # with the files' times
    part(raw, tmp_path / "out", 1, 2)
    part(tmp_path / "elsewhere/DFEW", tmp_path / "out", 2, 2)
    finish(raw, tmp_path / "out", 2)
    assert snapshot(tmp_path / "out") == whole


@pytest.mark.parametrize("frames", [0, 3, 9, 15])
def test_a_killed_part_continues_and_leaves_the_others_alone(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], frames: int
) -> None:
    out = tmp_path / "out"
    part(raw, out, 1, 3)
    others = {name: (data, times(out)[name]) for name, data in snapshot(out).items()}
    words = ["build", "dfew", str(raw), str(out), *OPTIONS, "--jobs", "1", "--no-progress", "--part", "2/3"]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, str(frames), *words], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = sorted(out.glob("*/*.done.json"))
    assert list(out.rglob("*.tar.*.tmp")) and "part_2_of_3.json" not in snapshot(out)
    part(raw, out, 3, 3)
    with pytest.raises(DataError, match=r"got 2 \(missing or not finished: 2/3\)"):
        finish(raw, out, 3)
    before = times(out)
    again = part(raw, out, 2, 3)
    assert again.unchanged == len(finished) - 4 and again.new == 3 - again.unchanged
    assert all(times(out)[str(path.relative_to(out))] == before[str(path.relative_to(out))] for path in finished)
    assert {name: (snapshot(out)[name], times(out)[name]) for name in others} == others
    finish(raw, out, 3)
    assert snapshot(out) == whole


def test_missing_parts_are_named_with_the_commands_that_make_them(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out of the way"
    assert run("--part", "2/4", raw, out) == 0
    assert "part 2/4: 3 shards made, 0 up to date" in (told := capsys.readouterr().out)
    assert "complete after --finish 4" in told
    assert run("--finish", 4, raw, out) == 3
    error = capsys.readouterr().err
    expected = f"error: {out}: expected 4 finished parts, got 1 (missing or not finished: 1/4, 3/4, 4/4). Run\n"
    assert error.startswith(expected) and error.endswith("\nand then this command again; finished shards are kept.\n")
    commands = [shlex.split(line) for line in re.findall(r"^  (dfer-shards .*)$", error, re.MULTILINE)]
    assert [words[-1] for words in commands] == ["1/4", "3/4", "4/4"]
    assert "manifest.json" not in snapshot(out)
    assert [main([*words[1:], "--jobs", "1", "--no-progress"]) for words in commands] == [0, 0, 0]
    assert run("--finish", 4, raw, out) == 0
    assert "finished, made in parts of 4" in capsys.readouterr().out
    assert snapshot(out) == whole


def test_nothing_begun_is_all_parts_missing_and_makes_no_folder(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 1 finished part, got 0 \(missing or not finished: 1/1\)"):
        finish(raw, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"19/300, 20/300 and 280 more\)") as caught:
        finish(raw, tmp_path / "out", 300)
    assert str(caught.value).count("COMMAND --part ") == 20


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("part_2_of_2.json", b'{"plan": '),
        ("part_2_of_2.json", b'{"plan": "other", "shards": {}}\n'),
        ("part_2_of_2.json", b"[]"),
        ("fold_1/00001.tar", None),
        ("fold_1/00001.index.json", b"{}"),
        ("fold_1/00001.done.json", None),
    ],
)
def test_a_part_that_is_not_whole_counts_as_missing(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], name: str, data: bytes | None
) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        part(raw, out, number, 2)
    (out / name).unlink()
    if data is not None:
        (out / name).write_bytes(data)
    with pytest.raises(DataError, match=r"got 1 \(missing or not finished: 2/2\). Run\n  COMMAND --part 2/2\n"):
        finish(raw, out, 2)
    part(raw, out, 2, 2)
    finish(raw, out, 2)
    assert snapshot(out) == whole


def test_a_part_that_began_again_and_did_not_end_counts_as_missing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        part(raw, out, number, 2)
    (raw / "Clip/clip_224x224/00001/00001_00001.jpg").write_bytes(rawkit.picture(99))
    owner = next(number for number in (1, 2) if "00001" in keys(raw, number))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            part(raw, out, owner, 2)
    with pytest.raises(DataError, match=rf"missing or not finished: {owner}/2\)"):
        finish(raw, out, 2)


def keys(root: Path, number: int) -> set[str]:
    """The clips of part `number` of two."""
    raw = read(root)
    shares = BuildPart(number=number, of=2).share(plan_shards(raw.clips, raw.emotions.names, SMALL))
    return {clip.key for share in shares for clip in share.clips}


def test_another_plan_is_refused(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part(raw, out, 1, 2)
    before = snapshot(out)
    rawkit.write_dfew_splits(raw, rawkit.dfew_labels(12))
    for step in (lambda: part(raw, out, 2, 2), lambda: finish(raw, out, 2)):
        with pytest.raises(UsageError, match=r"plan\.json: expected the plan of these split files, .* Give all parts"):
            step()
    with pytest.raises(UsageError, match=r"quality 90.* got one of .*quality 95.*Repeat the options"):
        other = replace(SMALL, quality=90)
        parts.make(read(raw), str(out), other, BuildPart(number=2, of=2), progress=False)
    assert snapshot(out) == before


def test_the_plan_depends_on_what_decides_the_shards_alone(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(raw: RawSet, options: BuildOptions = SMALL) -> str:
        return plan(raw, options, plan_shards(raw.clips, raw.emotions.names, options)).digest

    here, first = read(raw), digest(read(raw))
    elsewhere = tuple(replace(clip, folder=tmp_path / clip.key) for clip in reversed(here.clips))
    assert digest(replace(here, clips=elsewhere, notes=("a note",))) == first
    label = replace(here.clips[0], label=(here.clips[0].label + 1) % 7)
    others = [
        digest(replace(here, clips=(label, *here.clips[1:]))),
        digest(replace(here, clips=here.clips[1:])),
        digest(replace(here, options={"source_frames": "clip_224x224_16f"})),
        digest(here, replace(SMALL, quality=90)),
        digest(here, replace(SMALL, clips_per_shard=3)),
    ]
    monkeypatch.setattr("shards.plan.version", lambda _: "another version")
    assert len({first, *others, digest(here)}) == 7


def test_missing_clips_are_counted_over_all_parts(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    out = tmp_path / "out"
    made = [part(raw, out, number, 3) for number in (1, 2, 3)]
    counts = [sum(len(state.excluded) for state in done.states) for done in made]
    assert sum(counts) == 3
    gaps = "".join(f"\n  COMMAND --part {number}/3" for number, count in enumerate(counts, start=1) if count)
    with pytest.raises(DataError, match="got 3 clips that cannot be packed") as caught:
        finish(raw, out, 3, allow_missing=2)
    text = str(caught.value)
    assert f"Mend the raw data and run{gaps}\nand then this command again (finished" in text
    assert "or accept the gaps with --allow-missing 3." in text
    assert (out / "excluded.txt").exists() and not (out / "manifest.json").exists()
    assert len(finish(raw, out, 3, allow_missing=3).manifest.excluded) == 3
    build(read(raw), str(tmp_path / "whole"), SMALL, allow_missing=3, progress=False)
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_a_part_tells_its_missing_clips(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(raw / "Clip/clip_224x224/00002")
    assert run("--part", "1/1", raw, tmp_path / "out") == 0
    assert "clips that cannot be packed: 1\n  00002: no folder\n" in capsys.readouterr().out
    assert run("--finish", 1, raw, tmp_path / "out") == 3
    assert run("--finish", 1, raw, tmp_path / "out", "--allow-missing", 1) == 0
    assert "clips left out: 1\n  00002: no folder" in capsys.readouterr().out


def test_mended_clips_need_their_part_alone(raw: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    lost = raw / "Clip/clip_224x224/00002"
    lost.rename(tmp_path / "kept")
    out = tmp_path / "out"
    for number in (1, 2):
        part(raw, out, number, 2)
    with pytest.raises(DataError, match=r"COMMAND --part (\d)/2") as caught:
        finish(raw, out, 2)
    found = re.search(r"COMMAND --part (\d)/2", str(caught.value))
    assert found
    (tmp_path / "kept").rename(lost)
    assert part(raw, out, int(found[1]), 2).new == 1
    finish(raw, out, 2)
    assert snapshot(out) == whole


def test_a_clip_that_could_not_be_read_can_be_left_out(raw: Path, tmp_path: Path) -> None:
    with rawkit.unreadable("00004_00001.jpg"):
        part(raw, tmp_path / "out", 1, 1)
        assert finish(raw, tmp_path / "out", 1, allow_missing=1).manifest.excluded
    assert part(raw, tmp_path / "out", 1, 1).new == 1
    assert not finish(raw, tmp_path / "out", 1).manifest.excluded


def test_finishing_twice_changes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(raw, tmp_path / "out", 1, 1)
    manifest = finish(raw, tmp_path / "out", 1).manifest
    before = times(tmp_path / "out")
    done = finish(raw, tmp_path / "out", 1)
    assert done.already and done.manifest == manifest
    assert run("--finish", 1, raw, tmp_path / "out") == 0
    assert "nothing to do, it is finished and no part has begun since" in capsys.readouterr().out
    assert times(tmp_path / "out") == before


def test_a_finish_that_was_killed_before_its_end_can_be_repeated(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        part(raw, out, number, 2)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "remove_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(raw, out, 2)
    assert {"manifest.json", "plan.json", "part_1_of_2.json"} <= snapshot(out).keys()
    assert not finish(raw, out, 2).already
    assert snapshot(out) == whole


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_changed_is_made_again_by_its_part(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(read(raw), str(out), SMALL, progress=False)
    (raw / "Clip/clip_224x224/00007/00007_00001.jpg").write_bytes(rawkit.picture(99))
    assert [part(raw, out, number, 3).new for number in (1, 2, 3)].count(1) == 1
    assert not (out / "manifest.json").exists()
    finish(raw, out, 3)
    build(read(raw), str(tmp_path / "fresh"), SMALL, progress=False)
    assert snapshot(out) == snapshot(tmp_path / "fresh")


def test_parts_that_find_nothing_to_do_leave_a_finished_build_as_it_is(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(read(raw), str(out), SMALL, progress=False)
    before = times(out)
    assert [part(raw, out, number, 2).new for number in (1, 2)] == [0, 0]
    finish(raw, out, 2)
    assert times(out) == before


def test_raw_data_that_went_away_do_not_cost_a_finished_build(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(read(raw), str(out), SMALL, progress=False)
    before = times(out)
    shutil.rmtree(raw / "Clip/clip_224x224")
    (raw / "Clip/clip_224x224").mkdir()
    with pytest.raises(DataError, match="The finished build there is left as it is"):
        part(raw, out, 1, 2)
    assert {name: at for name, at in times(out).items() if name != "plan.json"} == before


def test_gaps_that_were_accepted_once_do_not_cost_a_finished_build(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    out = tmp_path / "out"
    build(read(raw), str(out), SMALL, allow_missing=3, progress=False)
    before = times(out)
    part(raw, out, 1, 1, allow_missing=3)
    with pytest.raises(DataError, match="The finished build there is left as it is"):
        finish(raw, out, 1, allow_missing=2)
    assert {name: times(out)[name] for name in before} == before


def test_a_build_without_parts_does_what_is_left(raw: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    part(raw, out, 2, 3)
    report = build(read(raw), str(out), SMALL, progress=False)
    assert (report.made.new, report.made.unchanged) == (7, 3)
    assert snapshot(out) == whole


def test_parts_work_beside_each_other_and_not_beside_another_build(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with only_writer(Folder(out), beside_parts=True):
        part(raw, out, 1, 2)
        part(raw, out, 2, 2)
        for step in (lambda: finish(raw, out, 2), lambda: build(read(raw), str(out), SMALL, progress=False)):
            with pytest.raises(StorageError, match="another dfer-shards build running there"):
                step()
    with only_writer(Folder(out)), pytest.raises(StorageError, match="another dfer-shards build running there"):
        part(raw, out, 1, 2)
    finish(raw, out, 2)


def test_a_shard_that_a_copy_of_the_part_has_made_is_left_as_it_is(raw: Path, tmp_path: Path) -> None:
    """The slower copy saw it missing; by now the build may be finished."""
    clips = read(raw)
    build(clips, str(tmp_path / "whole"), SMALL, progress=False)
    before = times(tmp_path / "whole")
    for one in plan_shards(clips.clips, clips.emotions.names, SMALL):
        shard.make(ShardTask(plan=one, out=str(tmp_path / "whole")))
    assert times(tmp_path / "whole") == before


def test_a_copy_of_a_part_that_ends_after_the_build_leaves_no_report(
    raw: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make = Build.make

    def overtaken(self: Build, *arguments: Any, **options: Any) -> Made:
        made = make(self, *arguments, **options)
        for name in ("plan.json", "part_1_of_1.json"):
            self.out.remove(name)  # what `finish` does on another host
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Build, "make", overtaken)
        part(raw, out, 1, 1)
    assert snapshot(out).keys() == whole.keys() - {"manifest.json"}


def test_the_files_of_parts_are_small_json(raw: Path, tmp_path: Path) -> None:
    part(raw, tmp_path / "out", 1, 2)
    found = json.loads((tmp_path / "out/plan.json").read_text())
    assert (found["dataset"], found["clips"], found["shards"]) == ("dfew", 15, 10)
    report = json.loads((tmp_path / "out/part_1_of_2.json").read_text())
    assert report["plan"] == found["digest"] and len(report["shards"]) == 5


@pytest.mark.parametrize(("number", "of"), [(0, 3), (4, 3), (1, 10_001), (1, 0)])
def test_numbers_of_parts_that_make_no_sense(number: int, of: int) -> None:
    with pytest.raises(UsageError, match=rf"part of a build: expected part K of N .*, got {number}/{of}\. Correct"):
        BuildPart(number=number, of=of)


def test_the_parts_of_a_build() -> None:
    assert [str(one) for one in parts.parts(3)] == ["1/3", "2/3", "3/3"]
    assert [one.name for one in parts.parts(2)] == ["part_1_of_2", "part_2_of_2"]
    with pytest.raises(UsageError, match="at most 10000"):
        parts.parts(10_001)
