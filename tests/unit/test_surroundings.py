"""What a process finds where it is started: output of any encoding, home folders, long TMPDIRs, copies of itself."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dfer import surroundings
from dfer.errors import StorageError, UsageError
from dfer.store.cache import default_folder
from dfer.surroundings import expand_home, refuse_copies

ROOT = Path(__file__).parents[2]


def started(
    code: str, *, uid: int | None = None, command: tuple[str, ...] = (), **variables: str
) -> "subprocess.CompletedProcess[bytes]":
    """A process of its own. The environment is what is given and what Python and our code need."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    words = [sys.executable, *(command or ("-c", code))]
    return subprocess.run(words, env=own, cwd="/", capture_output=True, timeout=120, check=False, user=uid)


# --- encodings


@pytest.mark.parametrize("program", ["dfer", "shards", "launch"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_program_writes_what_its_output_cannot_encode(program: str, encoding: str) -> None:
    """The dash of the table and names of files, undecodable ones too."""
    code = (
        f"import sys; from {program} import __main__ as cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print('a \\u2013 \\u6f22 \\udcff e')"
    )
    done = started(code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr.decode()
    shown = "a – 漢 \\udcff e" if encoding == "utf-8" else "a \\u2013 \\u6f22 \\udcff e"
    assert done.stdout.decode().splitlines()[-1] == shown and done.stderr == b""


def test_streams_that_are_none_of_python_s_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under a windowless start
    surroundings.accept_any_encoding()


# --- home folders


@pytest.mark.parametrize("text", ["s3://b/~", "~/x://y", "a/~", "./~", "", "runs/x", "/a~"])
def test_other_paths_and_urls_stay_as_they_are(text: str) -> None:
    assert expand_home(text) == text


def test_home_is_where_home_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (expand_home("~"), expand_home("~/a b #1")) == (str(tmp_path), f"{tmp_path}/a b #1")
    assert expand_home("~root/x") == "/root/x"
    monkeypatch.setenv("DFER_CACHE", "~/cache")
    assert default_folder() == tmp_path / "cache"


def test_a_home_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        expand_home("~no_such_user/x")
    assert str(caught.value) == (
        "~no_such_user/x: expected a home folder, got none for ~no_such_user. "
        "Write the whole path, or ./~no_such_user for a folder of that name."
    )


# --- long temporary folders

WORK = """
import multiprocessing, sys, tempfile
from multiprocessing.connection import Listener
from pathlib import Path
from dfer.surroundings import keep_socket_names_short

def work(pipe):
    with Listener(family="AF_UNIX") as listener:  # as torch's workers open one to pass tensors
        pipe.send((listener.address, tempfile.gettempdir()))

if __name__ == "__main__":
    keep_socket_names_short()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    print(*ours.recv(), sep="\\n")
    process.join()
"""


@pytest.mark.parametrize("length", [75, 76, 200])
def test_workers_start_under_a_tmpdir_of_any_length(length: int, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 250)
    folder = Path(str(folder)[:length])
    if len(str(tmp_path)) >= length:
        folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="d" * (length - len("/tmp/") - 8)))
    folder.mkdir(exist_ok=True)
    script = tmp_path / "work.py"
    script.write_text(WORK)
    try:
        done = started("", command=(str(script),), TMPDIR=str(folder))
        assert done.returncode == 0, done.stderr.decode()
        address, chosen = done.stdout.decode().splitlines()
        assert chosen == str(folder) and len(address) <= 107
        assert address.startswith(str(folder)) is (length < 76)
        assert [*folder.iterdir()] == [] and not Path(address).parent.exists()
    finally:
        folder.rmdir()


def test_where_no_short_folder_can_be_written_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{'x' * 80}")
    monkeypatch.setattr(surroundings, "_SHORT_FOLDERS", ("/no_such_folder", "/neither"))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    with pytest.raises(StorageError) as caught:
        surroundings.keep_socket_names_short()
    expected = (
        "TMPDIR: expected a folder of at most 75 bytes for sockets, or one of /no_such_folder, /neither to write to"
    )
    assert str(caught.value).startswith(f"{expected}, got {tmp_path}/xxx")
    assert str(caught.value).endswith("x. Set TMPDIR to a shorter folder, or data.workers=0.")
    assert tempfile.gettempdir().startswith(str(tmp_path))


# --- copies


@pytest.mark.parametrize(
    ("name", "starter"),
    [("SLURM_STEP_NUM_TASKS", "srun"), ("OMPI_COMM_WORLD_SIZE", "mpirun"), ("PMI_SIZE", "mpiexec")],
)
def test_copies_that_do_not_know_each_other_are_refused(name: str, starter: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_copies({name: "2"})
    assert str(caught.value) == (
        f"{name}: expected one process, or a process group, got 2 copies started by {starter} without RANK and "
        "WORLD_SIZE, each of which would do all of it. Use `dfer-launch slurm CONFIG` on a SLURM cluster, "
        "`dfer-launch local CONFIG --processes N` in one task of a host, or torchrun in one task a host; set "
        "WORLD_SIZE=1 if this is the only copy."
    )
    for fine in ({name: "1"}, {name: "2", "WORLD_SIZE": "2"}, {name: "2", "WORLD_SIZE": "1"}, {name: "x"}, {}):
        refuse_copies(fine)


def test_one_process_in_a_batch_script_of_several_tasks_is_no_copy() -> None:
    refuse_copies({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})


@pytest.mark.parametrize("words", [["dfer", "train"], ["dfer", "crossval"], ["dfer", "evaluate"], ["launch", "local"]])
def test_tasks_of_srun_end_before_they_make_anything(words: list[str], tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "demo.yaml")
    command = ("-m", *words, config, f"run={tmp_path}/run")
    done = started("", command=command, SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1")
    said = done.stderr.decode()
    assert done.returncode == 2 and said.startswith("error: SLURM_STEP_NUM_TASKS: expected one process, or"), said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
