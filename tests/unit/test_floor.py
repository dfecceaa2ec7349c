"""The floor: label sets, the world, the import order."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dfer import emotions
from dfer.distributed import World, from_environment, process_group
from dfer.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]


def test_words_of_all_data_sets_map_to_dfer_clip_order() -> None:
    basic, mafw = emotions.label_set("basic7"), emotions.label_set("mafw11")
    ferv39k = ["Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"]
    assert [basic.index(word) for word in ferv39k] == list(range(7))
    # MAFW's own numbering, as its table of conversions gives it.
    native = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt"]
    native += ["anxiety", "helplessness", "disappointment"]
    assert [mafw.index(word) for word in native] == [3, 5, 6, 0, 2, 1, 4, 7, 8, 9, 10]


def test_unknown_emotions_and_label_sets_are_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'happiness'"):
        emotions.label_set("basic7").index("hapiness")
    with pytest.raises(UsageError, match="Did you mean 'basic7'"):
        emotions.label_set("basic")
    for odd in (["fear", "fear"], ["Fear"], ["fear", "no/path"], []):
        with pytest.raises(UsageError, match="distinct names"):
            emotions.emotions_of(odd)
    assert emotions.emotions_of(["sleepy", "wide awake"]).index("Sleepy") == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://key:p%40ss@word@host/a/b?x=1: no", "s3://host/a/b: no"),
        ("url=URL('https://h/x?sig=abc&d=1'), 403", "url=URL('https://h/x'), 403"),
        ("simplecache::http://u@h/x: who? me@home", "simplecache::http://h/x: who? me@home"),
        ("/data/a@b?c: fine", "/data/a@b?c: fine"),
        ("s3://bucket/x: expected a@b?", "s3://bucket/x: expected a@b?"),
    ],
)
def test_errors_tell_urls_without_their_credentials(text: str, told: str) -> None:
    assert str(DataError(text)) == told
    assert str(pickle.loads(pickle.dumps(UsageError(text)))) == told


def test_errors_show_nothing_that_a_terminal_would_act_on() -> None:
    assert str(DataError("x: got \x1b[2Ja\0b\ud800\u202e, é 漢\nline")) == (
        "x: got \\x1b[2Ja\\x00b\\ud800\\u202e, é 漢\nline"
    )


def test_long_errors_lose_their_middle_but_no_credentials() -> None:
    text = (
        f"file: expected a, got {'x' * 1960} s3://user:{'secret' * 10}@host {'y ' * 5000}s3://u:{'secret' * 400}@h end"
    )
    told = str(DataError(text))
    assert told.startswith("file: expected a, got xxx") and told.endswith("@h end") is False and told.endswith(" end")
    assert "characters left out]" in told and len(told) < 4100 and "secret" not in told


def test_world_reads_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert from_environment() == World(rank=3, size=4, local_rank=1, local_size=2)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UsageError, match=r"RANK: expected 0..3, got 4"):
        from_environment()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UsageError, match="expected a whole number, got 'x'"):
        from_environment()


def test_several_processes_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UsageError) as caught, process_group(World(size=2)):
        pass
    assert str(caught.value) == (
        "MASTER_ADDR: expected the address at which the 2 processes of WORLD_SIZE meet, got nothing. "
        "Start all of them with torchrun or `dfer-launch local`, or unset WORLD_SIZE."
    )


PLAIN = {
    f"dfer.{name}"
    for name in (
        "errors",
        "choices",
        "config",
        "config_files",
        "multiprocessing_internals",
        "overrides",
        "yaml_text",
        "storage",
        "text_files",
        "local_files",
        "surroundings",
        "interruption",
        "emotions",
        "exit",
    )
}
"""The floor without torch."""
FLOOR = PLAIN | {"dfer.torch_internals", "dfer.recognition", "dfer.distributed", "dfer.rendezvous", "dfer.inference"}


def modules(*patterns: str) -> list[str]:
    """Dotted names of the modules that match."""
    found = [path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found]


LOWER = ("dfer.run", "dfer.store", "dfer.media")
"""Rooms that import the floor alone; every room may import them."""
ROOMS = (
    *LOWER,
    "dfer.data",
    "dfer.models",
    "dfer.training",
    "dfer.evaluation",
    "dfer.teacher",
    "dfer.report",
    "dfer.jobs",
)
READS = {f"dfer.evaluation.{name}" for name in ("answers", "results", "scores", "statistics")}
"""What reports import of the evaluation."""
WITHOUT_TORCH = (
    *modules("dfer/media/**/*.py", "dfer/report/**/*.py", "shards/**/*.py", "dfer/*/config*.py"),
    "dfer.__main__",
    "dfer.models.files",
    "dfer.run.folder",
    "dfer.run.layout",
    "dfer.run.lease",
    "dfer.evaluation.scores",
    "dfer.evaluation.results",
    "dfer.evaluation.answers",
    "dfer.evaluation.statistics",
    "dfer.jobs.parts",
    "dfer.jobs.crossval",
    "dfer.jobs.answering",
    "dfer.jobs.extract",
    "dfer.jobs.fit",
    "dfer.jobs.pairs",
    "dfer.teacher.files",
    "dfer.teacher.ready",
    "dfer.jobs.pieces",
    "dfer.jobs.predict_job",
    "dfer.jobs.predict_table",
    "dfer.jobs.features_job",
    "dfer.jobs.zeroshot",
    "dfer.jobs.zeroshot_config",
    "dfer.jobs.zeroshot_stands",
    "dfer.store.format",
    "dfer.store.index",
    "dfer.store.shards",
    "dfer.models.texts",
    "launch.__main__",
    "launch.build",
    "launch.job",
    "launch.status",
    "launch.control",
    "launch.local.submit",
    "launch.local.rank",
    "launch.slurm.submit",
    "launch.ray.submit",
)


def imports_of(path: Path) -> set[str]:
    """Modules of this project that a file imports, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if module_file(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("dfer", "shards", "launch")}


def module_file(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def room_of(name: str) -> str:
    return next((room for room in ROOMS if (name + ".").startswith(room + ".")), name)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in [*ROOT.glob("dfer/**/*.py"), *ROOT.glob("shards/**/*.py"), *ROOT.glob("launch/**/*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for target in imports_of(path):
            if not allowed(name, target):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def allowed(name: str, target: str) -> bool:
    mine, theirs = room_of(name), room_of(target)
    if name.startswith("launch"):
        return target.startswith(("launch", "dfer", "shards"))
    if name.startswith("shards"):
        return (
            target.startswith("shards")
            or target in PLAIN
            or target == "dfer.cli"
            or theirs == "dfer.media"
            or target in ("dfer.store.format", "dfer.store.index")
        )
    if name in PLAIN:
        return target in PLAIN
    if name in FLOOR:
        return target in FLOOR
    if target in FLOOR or theirs == mine:
        return True
    match mine:
        case "dfer.run" | "dfer.store" | "dfer.media":
            return False
        case "dfer.data" | "dfer.models" | "dfer.training" | "dfer.evaluation" | "dfer.teacher":
            return theirs in LOWER
        case "dfer.report":
            return theirs == "dfer.run" or target in READS
        case "dfer.jobs":
            return target.startswith("dfer") and not target.startswith(("dfer.commands", "dfer.bench", "dfer.__main__"))
        case _:  # bench and the command line know every room
            return target.startswith("dfer")


def test_what_launchers_and_help_import_does_not_import_torch() -> None:
    code = f"import importlib, sys\nfor name in {WITHOUT_TORCH}: importlib.import_module(name)\n"
    code += "print(sorted({'torch', 'open_clip', 'ray', 'matplotlib.pyplot'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout == "[]\n"


def test_only_towers_imports_open_clip() -> None:
    users = [
        p.name
        for p in ROOT.glob("dfer/**/*.py")
        if re.search(r"^ *(import|from) open_clip\b", p.read_text(), re.MULTILINE)
    ]
    assert users == ["towers.py"]
