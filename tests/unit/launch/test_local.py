"""The local launcher: what it starts, and that signals, last words and exit codes come through."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfer.config import to_plain
from dfer.config_files import load
from dfer.errors import UsageError
from dfer.jobs.config import RunConfig
from launch import __main__ as cli
from launch.local import processes
from launch.local import submit as local
from launch.local.processes import Group, free_port, wait
from tests import fake_runs
from tests.processes import alive

CONFIGS = Path(__file__).parents[3] / "configs"
FAKE = Path(__file__).with_name("fake_rank.py")


def test_dry_run_prints_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["local", "demo", "--processes", "3", "--only", "fold_1,fold_2", "--dry-run", "seed=2"]) == 0
    words = capsys.readouterr().out.split()
    assert words == [
        sys.executable,
        "-m",
        "launch.local.rank",
        "crossval",
        "demo",
        "--only",
        "fold_1,fold_2",
        "seed=2",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0"], "--processes: expected 1 or more, got 0. One a GPU"),
        (["--parallel", "0"], "--parallel: expected 1 or more, got 0"),
        (["--verb", "train", "--parallel", "2"], "--parallel: expected --verb crossval, got train. Leave"),
        (["--verb", "train", "--only", "fold_2"], "--only: expected --verb crossval, got train. Leave"),
    ],
)
def test_wrong_numbers_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["local", "c.yaml", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--procs", "2"], ["--only", ","]])
def test_stray_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["local", "c.yaml", *arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        (
            "none.yaml",
            "seed=1",
            "none.yaml: expected a YAML file or the name of a configuration, got neither. Correct it. ",
        ),
        ("demo.yaml", "epoch=3", "epoch: unknown key. Did you mean"),
    ],
)
def test_a_wrong_configuration_starts_no_process(
    config: str, override: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert cli.main(["local", str(CONFIGS / config), "--processes", "2", override]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


# --- groups of ranks that only pretend


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks run fake_rank.py: each argument is what the rank of that number does."""
    real = subprocess.Popen

    def start(words: list[str], **options: object) -> "subprocess.Popen[bytes]":
        assert words[:3] == [sys.executable, "-m", "launch.local.rank"]
        return real([sys.executable, str(FAKE), *words[3:]], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(processes.subprocess, "Popen", start)


def ended(group: Group, within: float = 20) -> int:
    until = time.monotonic() + within
    while group.code is None:
        assert time.monotonic() < until
        wait([group])
        group.step()
    return group.code


def group(*does: str, grace_s: float = 5.0) -> Group:
    return Group(does, processes=len(does), environment=os.environ, grace_s=grace_s)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("does", "code", "said"),
    [
        (["exit 0", "exit 0"], 0, []),
        # The first for a reason of its own, though another noticed sooner.
        (["sleep 0.3 exit 3", "exit 7", "sleep 0.6 exit 6"], 3, []),
        (["exit 7", "sleep 0.3 say bad exit 3", "sleep 0.6 say bad exit 3"], 3, ["error: bad"]),
        (["say mine exit 9", "say mine exit 9"], 9, ["error: mine"]),
        (["exit 7", "exit 7"], 7, []),
        (["exit 7", "kill 9"], 7, ["error: process 1 of 2: expected to run to its end, got SIGKILL. The same command"]),
    ],
)
def test_the_first_own_reason_is_the_jobs_and_told_once(
    does: list[str], code: int, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended(group(*does)) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(line.startswith(word) for line, word in zip(lines, said)), lines


@pytest.mark.usefixtures("fake")
def test_what_is_no_last_word_is_passed_on_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    running = group("exit 0", "note hello sleep 30")
    try:
        until = time.monotonic() + 10
        err = ""
        while "hello" not in err:
            assert time.monotonic() < until
            wait([running])
            running.step()
            err += capfd.readouterr().err
        assert running.code is None
    finally:
        running.kill()
        assert ended(running) == 1


@pytest.mark.usefixtures("fake")
def test_ranks_that_do_not_notice_are_killed_after_the_grace() -> None:
    assert ended(group("sleep 60", "exit 4", grace_s=0.5), within=8) == 4


@pytest.mark.usefixtures("fake")
def test_a_signal_before_the_ranks_can_save_is_a_stop(capfd: pytest.CaptureFixture[str]) -> None:
    running = group("sleep 60", "sleep 60")
    time.sleep(0.5)
    running.forward(signal.SIGTERM)
    assert ended(running) == 9
    assert "got SIGTERM while it was starting. Nothing was lost; the same command" in capfd.readouterr().err


@pytest.mark.usefixtures("fake")
def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    assert ended(group(f"env {tmp_path / '0'}", f"env {tmp_path / '1'}")) == 0
    first, second = (dict(line.split("=") for line in (tmp_path / name).read_text().split()) for name in "01")
    assert (first["RANK"], first["LOCAL_RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "0", "1", "1")
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2" and first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    code = f"""
import os, subprocess, sys, time
from launch.local import processes
real = subprocess.Popen
processes.subprocess.Popen = lambda words, **o: real([sys.executable, {str(FAKE)!r}, *words[3:]], **o)
processes.Group(["pid {pids}/0 sleep 60", "pid {pids}/1 sleep 60"], processes=2, environment=os.environ)
time.sleep(60)
"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 20
        while len(list(pids.iterdir())) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        launcher.kill()
        launcher.wait()
    ranks = [int(path.read_text()) for path in pids.iterdir()]
    while any(alive(pid) for pid in ranks):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ports_stay_out_of_the_systems_range() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(20))


# --- several folds at a time


def test_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    second = local.slot_environment(1, slots=2, processes=2)
    assert (second["OMP_NUM_THREADS"], second["CUDA_VISIBLE_DEVICES"]) == ("4", "6,7")
    assert (
        local.slot_environment(1, slots=2, processes=1)["CUDA_VISIBLE_DEVICES"] == "6,7"
    )  # all that it may divide over
    assert local.slot_environment(2, slots=3, processes=1)["CUDA_VISIBLE_DEVICES"] == "6"
    assert local.slot_environment(1, slots=3, processes=2)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert local.visible_gpus({}, tmp_path) == ["0", "2", "10"]
    assert local.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("failing", "code"), [("exit 0", 0), ("exit 3", 3)])
def test_a_fold_that_fails_leaves_the_others_alone(tmp_path: Path, failing: str, code: int) -> None:
    marks = [f"pid {tmp_path / str(k)} exit 0" for k in range(3)]
    assert local._Jobs([[marks[0]], [failing], [marks[1]], [marks[2]]], parallel=2).run() == code
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("fake")
def test_lines_of_folds_beside_each_other_say_whose_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    each = [["note hello exit 0", "note hi exit 0"], ["say bad exit 3", "say bad exit 3"], ["exit 7", "kill 9"]]
    assert local._Jobs(each, processes=2, parallel=2, labels=["fold_1", "fold_2", "fold_4"]).run() == 3
    said = sorted(capfd.readouterr().err.splitlines())
    assert said[:3] == ["fold_1: hello", "fold_1: hi", "fold_2: error: bad"]
    assert said[3].startswith("fold_4: error: process 1 of 2: expected to run to its end, got SIGKILL.")
    assert len(said) == 4


@pytest.mark.usefixtures("fake")
def test_after_a_signal_no_fold_is_started(tmp_path: Path) -> None:
    waiting = [[f"parent {signal.SIGUSR1.value} sleep 60"], [f"pid {tmp_path / 'late'} exit 0"]]
    assert local._Jobs(waiting).run() == 9
    assert not (tmp_path / "late").exists()


@pytest.mark.usefixtures("fake")
def test_a_stop_that_found_every_fold_finished_is_one_where_others_wait(tmp_path: Path) -> None:
    jobs = local._Jobs([[f"parent {signal.SIGUSR1.value} exit 0"], [f"pid {tmp_path / 'late'} exit 0"]])
    assert jobs.run() == 9 and not (tmp_path / "late").exists()


@pytest.mark.parametrize(("stopped", "reported"), [(False, True), (True, False)])
def test_folds_that_ended_well_are_reported_beside_a_failed_one(
    stopped: bool, reported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(jobs: local._Jobs) -> int:
        jobs.stopped = stopped
        return 3

    config = load([CONFIGS / "demo.yaml"], RunConfig, [f"run={tmp_path / 'fold_1'}", "epochs=50"])
    fake_runs.write_fold(tmp_path / "fold_1", fake_runs.result(fold=1), plain=to_plain(config), curves=False)
    monkeypatch.setattr(local._Jobs, "run", run)
    monkeypatch.setattr("dfer.jobs.crossval.known_folds", lambda _: [1, 2, 3, 4, 5])
    words = ["--parallel", "2", "--only", "fold_1,fold_2", f"run={tmp_path}", "epochs=50"]
    assert cli.main(["local", str(CONFIGS / "demo.yaml"), *words]) == 3
    out, err = capsys.readouterr()
    assert ("1 of 5 folds" in out, "got none of fold_2" in err, (tmp_path / "report").exists()) == (reported,) * 3


def test_options_of_crossval_reach_it() -> None:
    job = local.Local(verb="crossval", configs=["c.yaml"], only=("fold_2", "fold_3"), overrides=["seed=1"])
    assert job.arguments() == ["crossval", "c.yaml", "--only", "fold_2,fold_3", "seed=1"]
    with pytest.raises(UsageError):
        local.Local(verb="evaluate", configs=["c.yaml"], only=("fold_2",))


@pytest.mark.integration
def test_the_job_fails_with_a_message_and_its_failure_is_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run={tmp_path / 'run'}", f"data.shards={tmp_path / 'none'}"]
    job = local.Local(verb="train", configs=[str(CONFIGS / "demo.yaml")], overrides=overrides, processes=2)
    assert local.run(job) == 3
    err = capfd.readouterr().err
    assert err.count(f"{tmp_path}/none/manifest.json: expected the manifest") == 1
