"""The command line: examples, overrides, messages and exit codes. What the commands do is tested elsewhere."""

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfer import __main__ as cli
from dfer import errors
from launch.local.rank import LAUNCHER

COMMANDS = ("train", "crossval", "evaluate", "predict", "report", "bench loader", "bench step")


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `dfer COMMAND --help` prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_of_the_help_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^  .*?\bdfer (.+)$", shown(command, capsys).partition("examples:\n")[2], re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(command)
        assert callable(cli.parse(shlex.split(example)).command)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("", capsys)
    assert all(re.search(rf"^    {command.split()[0]} ", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "text",
    [
        "train c.yaml a=1 b.c=2 --dry-run",
        "train c.yaml --dry-run a=1 b.c=2",
        "train c.yaml a=1 --dry-run b.c=2",
        "train --dry-run c.yaml a=1 b.c=2",
        "train a=1 c.yaml b.c=2 --dry-run",
    ],
)
def test_overrides_may_stand_anywhere(text: str) -> None:
    args = cli.parse(text.split())
    assert (args.configs, args.dry_run, args.overrides) == (["c.yaml"], True, ["a=1", "b.c=2"])


@pytest.mark.parametrize(
    "text",
    [
        "crossval methods/coop ./sets/lr=3.yaml seed=1 --only fold_2",
        "crossval methods/coop --only fold_2 ./sets/lr=3.yaml seed=1",
        "crossval --only fold_2 seed=1 methods/coop ./sets/lr=3.yaml",
    ],
)
def test_files_are_told_from_overrides(text: str) -> None:
    args = cli.parse(text.split())
    assert (args.configs, args.overrides, args.only) == (["methods/coop", "./sets/lr=3.yaml"], ["seed=1"], ["fold_2"])


@pytest.mark.parametrize("command", ["train", "crossval", "evaluate"])
def test_the_help_shows_a_join(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(command, capsys).split())
    assert "CONFIG [CONFIG ...] [a.b=c ...]" in text and "several are joined, such as methods/X sets/Y" in text
    assert f"dfer {command} methods/dfer_clip sets/dfew" in text


def test_parts_are_chosen_by_name() -> None:
    assert cli.parse(["crossval", "c.yaml", "--only", "fold_1,seed_2/fold_3"]).only == ["fold_1", "seed_2/fold_3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("trian c.yaml", "invalid choice: 'trian'"),
        ("train", "the following arguments are required: CONFIG"),
        ("train a=1 --dry-run", "the following arguments are required: CONFIG"),
        ("train c.yaml --epochs 3", "unrecognized arguments: --epochs"),
        ("train c.yaml --only fold_1", "unrecognized arguments: --only"),
        ("report run a=1", "unrecognized arguments: a=1"),
        ("crossval c.yaml --only fold_1,", "expected names such as fold_1,fold_2, got 'fold_1,'"),
        ("bench step --precision fp64", "invalid choice: 'fp64'"),
    ],
)
def test_wrong_arguments_are_named(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(text.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def outcome(monkeypatch: pytest.MonkeyPatch, raises: BaseException) -> int:
    """The exit code when the command raises this."""

    def command(_: Any) -> None:
        raise raises

    monkeypatch.setattr("dfer.commands.report._report", command)
    return cli.main(["report", "run"])


KINDS: dict[Callable[[str], errors.DferError], int] = {
    errors.UsageError: 2,
    errors.DataError: 3,
    errors.NonFiniteLossError: 4,
    errors.CheckpointError: 5,
    errors.StorageError: 6,
    errors.ProcessError: 7,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_line_and_an_exit_code(
    kind: Callable[[str], errors.DferError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, kind("a: expected b, got c. Do d.")) == KINDS[kind]
    assert capsys.readouterr() == ("", "error: a: expected b, got c. Do d.\n")


def test_wrong_usage_is_told_once_a_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's, when no name was given
    for rank, local_rank, told in ((0, 0, True), (1, 1, False), (4, 0, True)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert outcome(monkeypatch, errors.UsageError("a")) == 2
        assert capsys.readouterr().err == ("error: a\n" if told else "")
        assert outcome(monkeypatch, errors.DataError("a")) == 3
        assert capsys.readouterr().err == "error: a\n"
        with pytest.raises(SystemExit) as ended:
            cli.main(["train"])
        assert ended.value.code == 2
        assert bool(capsys.readouterr().err) is told


@pytest.mark.parametrize("left_over", [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x"}])
def test_a_local_rank_left_over_silences_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left_over: dict[str, str]
) -> None:
    """Only a launcher that passes on what the first rank says stands for the others."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"LOCAL_RANK": "1", "DFER_LAUNCHER_PID": "1", **left_over}.items():
        monkeypatch.setenv(name, value)
    assert outcome(monkeypatch, errors.UsageError("a")) == 2
    assert capsys.readouterr().err == "error: a\n"
    assert LAUNCHER == "DFER_LAUNCHER_PID"
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert outcome(monkeypatch, errors.UsageError("a")) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.ENOSPC, "No space left on device", "run/x"),
        PermissionError(errno.EACCES, "Permission denied", "run/x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "run/x"),
    ],
)
def test_a_failing_disk_or_path_is_a_storage_error(
    fault: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, fault) == 6
    said = capsys.readouterr().err
    where = fault.filename or "a file"
    assert said.startswith(f"error: {where}: expected to read or write it, got {fault.strerror}. ")
    assert "then repeat the command" in said and said.count("\n") == 1


@pytest.mark.parametrize("fault", [ConnectionResetError(errno.ECONNRESET, "reset"), ValueError("x")])
def test_faults_of_ours_keep_their_traceback(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(fault)):
        outcome(monkeypatch, fault)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues from the last checkpoint\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train"]])
def test_help_and_mistakes_do_not_wait_for_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom dfer.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: dfer" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["evaluate {}", "predict {} clip"])
def test_a_folder_that_is_not_the_run_of_one_fold(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.format(tmp_path).split()
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    expected = f"error: {tmp_path}: expected the run folder of one fold, with config.yaml, got none. "
    assert said == f"{expected}Train first: dfer train CONFIG\n"
    for fold in (2, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "config.yaml").touch()
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"{expected}Give one of its parts: {tmp_path}/fold_1\n"


def test_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "nosuchdir"
    assert cli.main(["evaluate", str(source)]) == 2
    assert capsys.readouterr().err == (
        f"error: {source}: expected a run folder or a configuration, got neither. "
        "Correct the path, or train first: dfer train CONFIG\n"
    )


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_bench_of_no_time(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "loader", "shards", f"--seconds={seconds}"]) == 2
    assert "error: --seconds: expected more than 0" in (err := capsys.readouterr().err) and "Traceback" not in err
