"""The documents against the code: tree, links, commands, exit codes, the tutorial; and the house sizes."""

import argparse
import ast
import os
import re
import shlex
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dfer.__main__ as cli
import launch.__main__ as launch_cli
import shards.__main__ as shards_cli
from dfer import config_files, errors
from dfer.cli import INTERRUPTED, parse
from dfer.data.clips import keys_of
from dfer.data.splits import folds
from dfer.emotions import Emotions, label_set
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import load_job
from dfer.models import build as model_build
from dfer.models import config as model_config
from dfer.models.texts import class_texts
from dfer.recognition import ClipBatch, FeatureBatch, Progress
from dfer.store.format import KEY, PARTITION
from dfer.store.shards import Store
from dfer.training.config import GroupConfig, SgdConfig
from dfer.training.optim import group_settings
from launch import cluster
from launch import job as launch_job
from shards.build import build
from shards.shard import BuildOptions
from shards.sources.clips import RawSet
from shards.verify import verify
from tests.unit.shards import rawkit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("dfer", "shards", "launch")
# What a checkout may hold besides its own files.
NOT_OURS = {"data", "demo", "runs", "build", "dist"}


def ours(pattern: str) -> list[Path]:
    found = [path.relative_to(ROOT) for path in ROOT.glob(pattern)]
    return sorted(p for p in found if p.parts[0] not in NOT_OURS and not any(part[0] == "." for part in p.parts))


PAGES = ours("**/*.md")
MODULES = [path for package in PACKAGES for path in ours(f"{package}/**/*.py")]


def fenced(page: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def without_code(page: str) -> str:
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))


# --- the tree


def tree() -> list[str]:
    """Paths of the first block of docs/architecture.md; folders end with a slash."""
    block = fenced((DOCS / "architecture.md").read_text(), "")[0]
    above: list[str] = []
    out = []
    for line in block.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+) {2,}\S.*|((?:  )*)(\S+/)", line)
        assert match, f"not `name  what it is`: {line!r}"
        indent, name = (match[1] or match[3] or ""), (match[2] or match[4])
        del above[len(indent) // 2 :]
        assert len(above) == len(indent) // 2, f"indented below a file: {line!r}"
        out.append("".join(above) + name)
        if name.endswith("/"):
            above.append(name)
    return out


def test_everything_in_the_tree_exists_and_stands_once() -> None:
    named = tree()
    assert len(named) > 80
    assert len(set(named)) == len(named)
    absent = [n for n in named if not ((ROOT / n).is_dir() if n.endswith("/") else (ROOT / n).is_file())]
    assert not absent


def test_every_module_stands_in_the_tree() -> None:
    named = set(tree())
    names = [f"{path.parent}/" if path.name == "__init__.py" else str(path) for path in MODULES]
    assert [name for name in names if name not in named] == []


# --- links


def slug(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    page = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link that is no URL."""
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", without_code((ROOT / page).read_text())):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for path, anchor in links(page):
        target = ROOT / page.parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_every_test_the_promises_name_exists() -> None:
    named = re.findall(
        r"`((?:unit|integration|cluster|hostile)/[\w/.]*|[\w]+\.py)`", (DOCS / "reliability.md").read_text()
    )
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_links_are_found_at_all() -> None:
    assert ("docs/images/synthetic_faces.png", "") in links(Path("README.md"))
    assert ("shard_format.md", "the-tar") in links(Path("docs/data.md"))
    assert slug("With your own data: `a.b=c`?") == "with-your-own-data-abc"


def test_the_index_names_every_page() -> None:
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert pages <= {path for path, _ in links(Path("docs/README.md"))}


# --- text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_page_names_a_path_of_somebodys_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|root|home|Users)\b[^\s`)]*", (ROOT / page).read_text()) == []


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# --- commands


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command of ours in a block of shell text."""
    found = []
    for page in PAGES:
        for block in fenced((ROOT / page).read_text(), "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for starter, ours in (("torchrun", "dfer"), ("ray", "dfer-launch")):
                    if words[:1] == [starter] and ours in words:
                        words = words[words.index(ours) :]
                if words and words[0] in ("dfer", "dfer-shards", "dfer-launch"):
                    found.append((str(page), words))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=[" ".join(words)[:60] for _, words in commands()])
def test_commands_parse(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if words[0] == "dfer-shards":
        if page == "docs/adding_a_data_set.md":
            monkeypatch.setitem(shards_cli.SOURCES, "movies", shards_cli.SOURCES["dfew"])
        shards_cli._parser().parse_args(words[1:])
        return
    monkeypatch.chdir(ROOT)
    if page == "docs/adding_a_data_set.md":
        monkeypatch.chdir(tmp_path)
        Path("sets").mkdir()
        Path("sets/movies.yaml").write_text(fenced((ROOT / page).read_text(), "yaml")[-1])
    args = parse({"dfer": cli, "dfer-launch": launch_cli}[words[0]].parser(), words[1:])
    overrides, resources = cluster.split(getattr(args, "overrides", []))
    if kind := {"slurm": cluster.SlurmCluster, "ray": cluster.RayCluster}.get(words[1]):
        cluster.load_cluster(args.cluster, kind, resources)
    configs = getattr(args, "configs", [])
    if configs and not re.match(r"runs/|models/|RUN", configs[0]):
        load_job(configs, overrides, launch_job.JOBS)


def test_no_example_puts_licensed_data_into_a_package_folder() -> None:
    inside = re.compile(r"(?<![\w/.])(dfer|shards|launch)/(dfew|ferv39k|mafw)(?![\w.])")
    texts = {str(path): (ROOT / path).read_text() for path in [*PAGES, *MODULES, *ours("configs/**/*.yaml")]}
    assert [name for name, text in texts.items() if inside.search(text)] == []
    assert inside.search("dfer-shards show shards/dfew") and not inside.search("data/dfew, shards/sources/dfew.py")


def test_the_readme_shows_the_main_commands() -> None:
    shown = {" ".join(words[:2]) for page, words in commands() if page == "README.md"}
    assert {"dfer-shards build", "dfer-shards verify", "dfer train", "dfer crossval", "dfer evaluate"} <= shown


def test_the_readme_names_every_verb() -> None:
    page = (ROOT / "README.md").read_text()
    programs = {"dfer": cli.parser(), "dfer-shards": shards_cli._parser(), "dfer-launch": launch_cli.parser()}
    verbs = [(name, verb) for name, parser in programs.items() for verb in subcommands(parser)]
    assert len(verbs) > 10
    assert [pair for pair in verbs if not re.search(rf"`{pair[0]} [^`]*\b{pair[1]}\b", page)] == []


def subcommands(parser: argparse.ArgumentParser) -> list[str]:
    return [verb for action in parser._actions if isinstance(action.choices, dict) for verb in action.choices]


# --- exit codes


def kinds() -> dict[str, int]:
    """Classes with an exit code of their own, and the base of all."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DferError)]
    return {kind.__name__: kind.exit_code for kind in classes if "exit_code" in vars(kind)}


def test_exit_codes_of_the_architecture_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == kinds()


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    sentence = re.search(r"exit codes: ([^.]*)\.", (ROOT / "README.md").read_text().replace("\n", " "))
    assert sentence
    told = {int(code): text.replace("-", " ") for code, text in re.findall(r"(\d+) ([^,]+)", sentence[1])}
    for name, code in kinds().items():
        if name != "DferError":
            words = re.sub(r"(?<!^)(?=[A-Z])", " ", name.removesuffix("Error")).lower()
            assert words in told.pop(code).lower(), name
    assert set(told) == {INTERRUPTED}


# --- the tutorial


MOODS = ("delighted", "low", "cross", "calm", "wide awake")


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    """A raw tree as the tutorial describes it: ten training and four test clips, one without a mood."""
    rows = []
    for number, part in enumerate(["train"] * 10 + ["test"] * 4):
        rawkit.fill(tmp_path / f"movies/faces/m{number:04d}", ["1.jpg", "2.jpg", "10.jpg"], seed=number)
        mood = "" if number == 9 else MOODS[number % 5]
        rows.append(f"m{number:04d},{'' if number == 3 else f'p{number // 2}'},{mood},{part}\n")
    (tmp_path / "movies/labels.csv").write_text("clip,subject,mood,part\n" + "".join(rows))
    return tmp_path / "movies"


def tutorial() -> str:
    return (DOCS / "adding_a_data_set.md").read_text()


def tutorial_source() -> types.ModuleType:
    source = next(b for b in fenced(tutorial(), "python") if "def read(" in b)
    module = types.ModuleType("movies")
    exec(compile(source, "adding_a_data_set.md", "exec"), module.__dict__)
    return module


def test_the_tutorials_source_builds_shards(movies: Path, tmp_path: Path) -> None:
    raw = tutorial_source().read(movies)
    assert isinstance(raw, RawSet)
    manifest = build(raw, str(tmp_path / "out"), BuildOptions(), progress=False).manifest
    assert manifest.classes == MOODS
    assert manifest.counts == {"train": (2, 2, 2, 2, 1), "test": (1, 1, 1, 1, 0)}
    assert verify(str(tmp_path / "out"), progress=False).frames == 42
    assert folds(manifest, "published")[1].train.names == ("train",)
    assert all(KEY.fullmatch(clip.key) and PARTITION.fullmatch(clip.partition) for clip in raw.clips)
    assert [clip.subject for clip in raw.clips[:4]] == ["p0", "p0", "p1", None]
    store = Store(str(tmp_path / "out"))
    for fold in folds(manifest, "subjects").values():
        train, test = keys_of(store, fold.train), keys_of(store, fold.test)
        assert len(train) + len(test) == 13 and not train & test
        who = {clip.key: clip.subject for clip in raw.clips}
        assert not {who[key] for key in train} & {who[key] for key in test}


def test_the_tutorials_texts_are_those_of_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "movies_texts.yaml"
    path.write_text(next(iter(fenced(tutorial(), "yaml"))))
    assert class_texts(Emotions(names=MOODS), str(path))[0] == "a broad smile and raised cheeks."


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("clip,subject", "id,subject", r"labels.csv: expected the header clip,subject,mood,part, got 'id,"),
        ("m0003,,calm", "m0003,,clam", r"line 5: expected one of the five moods, got 'clam'.* Did you mean 'calm'"),
        ("m0001,p0,low,train", "m0001,p0,low,valid", r"line 3: .* with a part out of train or test"),
    ],
)
def test_the_tutorials_source_refuses_wrong_rows(movies: Path, before: str, after: str, says: str) -> None:
    table = movies / "labels.csv"
    assert before in table.read_text()
    table.write_text(table.read_text().replace(before, after))
    with pytest.raises(errors.DataError, match=says):
        tutorial_source().read(movies)


def test_the_builder_refuses_a_clip_that_the_tutorials_table_has_twice(movies: Path, tmp_path: Path) -> None:
    table = movies / "labels.csv"
    table.write_text(table.read_text().replace("m0001,", "m0000,"))
    with pytest.raises(errors.DataError, match="raw set movies: expected every clip once, got m0000 2 times"):
        build(tutorial_source().read(movies), str(tmp_path / "out"), BuildOptions(), progress=False)


def test_the_tutorials_method_trains_on_frames_and_on_features(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = fenced((DOCS / "adding_a_method.md").read_text(), "python")
    dataclass_text, _, method_text, arm, *_ = blocks
    configs = dict(vars(model_config))
    exec(compile(dataclass_text, "adding_a_method.md", "exec"), configs)
    kind = configs["CosineProbeConfig"]
    monkeypatch.setattr(model_config, "CosineProbeConfig", kind, raising=False)
    space: dict[str, Any] = {}
    exec(compile(method_text, "adding_a_method.md", "exec"), space)
    # The arm as it stands on the page, in a function of its own.
    function = "def arm(config, emotions, seed, weights, dims):\n    match config:\n" + arm
    build_space = {**vars(model_build), "CosineProbeConfig": kind, "CosineProbe": space["CosineProbe"]}
    exec(compile(function, "adding_a_method.md", "exec"), build_space)
    config_of = kind(towers=model_config.TowersConfig(arch="tiny-conv-64"))
    whole = build_space["arm"](config_of, label_set("basic7"), 1, True, None)
    frames = torch.randint(0, 256, (4, 2, 3, 64, 64), dtype=torch.uint8)
    clips = ClipBatch(frames=frames, labels=torch.tensor([0, 1, 2, 6]), index=torch.arange(4))
    features = FeatureBatch(features=whole.encode(clips), labels=clips.labels, index=clips.index)
    fed = build_space["arm"](config_of, label_set("basic7"), 1, True, {"frames": features.features["frames"].shape[-1]})
    assert whole.tower_weights() == whole.state_dict().keys() - {"vectors"} and fed.tower is None
    for model, batch in ((whole, clips), (fed, features)):
        out = model(batch)
        (loss,) = model.loss(out, batch, Progress(epoch=0, step=0, fraction=0.0)).values()
        loss.backward()
        settings = group_settings(SgdConfig(groups={"vectors": GroupConfig(lr=0.1)}), model)
        assert out.logits.shape == (4, 7) and [setting.params for setting in settings] == [("vectors",)]
        assert model.vectors.grad.abs().min() > 0
    assert torch.allclose(whole.vectors.grad, fed.vectors.grad, atol=1e-5)


def test_the_tutorials_yaml_configures_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (DOCS / "adding_a_method.md").read_text()
    (text,) = fenced(page, "yaml")
    path = tmp_path / "cosine_probe.yaml"
    path.write_text(text.replace("base: ", f"base: {ROOT}/configs/methods/"))
    plain = config_files.read([path], RunConfig)
    assert plain["model"]["name"] == "cosine_probe" and plain["data"]["train_frames"] == "middle"
    assert {name for name, group in plain["optim"]["groups"].items() if group is not None} == {"vectors"}


def test_python_on_the_data_page_reads_a_shard(movies: Path, tmp_path: Path) -> None:
    build(tutorial_source().read(movies), str(tmp_path / "out"), BuildOptions(), progress=False)
    block = next(b for b in fenced((DOCS / "data.md").read_text(), "python") if "first_frame" in b)
    space: dict[str, object] = {}
    exec(block.replace("data/dfew/fold_1/00000.tar", str(tmp_path / "out/test/00000.tar")), space)
    key = space["index"]["key"][0]  # type: ignore[index]
    assert space["first_frame"] == (movies / "faces" / key / "1.jpg").read_bytes()


# --- sizes


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_keep_to_the_house_sizes(package: str) -> None:
    long_files, long_functions = [], []
    for path in [path for path in MODULES if path.parts[0] == package]:
        text = (ROOT / path).read_text()
        if len(text.splitlines()) > 400:
            long_files.append(str(path))
        for node in ast.walk(ast.parse(text)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and (node.end_lineno or 0) - node.lineno + 1 > 60:
                long_functions.append(f"{path}:{node.lineno} {node.name}")
    assert (long_files, long_functions) == ([], [])


def test_the_checkout_is_the_one_that_is_looked_at() -> None:
    assert len(MODULES) > 80
    assert Path("README.md") in PAGES and (ROOT / "dfer").samefile(Path(errors.__file__).parent)


# --- a kind of job


def test_the_tutorials_job_runs_in_any_number_of_parts(
    movies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "adding_a_job.md").read_text()
    module, line = fenced(page, "python")
    build(tutorial_source().read(movies), str(tmp_path / "shards"), BuildOptions(clips_per_shard=2), progress=False)
    (tmp_path / "lengths.py").write_text(module)
    assert ast.literal_eval(f"{{{line.strip()}}}") == {"lengths": "dfer.jobs.lengths"}  # the line, and no other entry
    monkeypatch.setitem(launch_job.JOBS, "lengths", "lengths")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (text,) = fenced(page, "yaml")
    (tmp_path / "lengths.yaml").write_text(text)
    for workers in (1, 3):
        words = [f"run={tmp_path}/run{workers}", f"shards={tmp_path}/shards", f"workers={workers}"]
        assert launch_cli.main(["local", str(tmp_path / "lengths.yaml"), "--parallel", "2", *words]) == 0
        assert "14 clips, 3 to 3 frames" in capfd.readouterr().out
        assert launch_cli.main(["local", str(tmp_path / "lengths.yaml"), *words]) == 0
        assert capfd.readouterr().out == "14 clips, 3 to 3 frames\n"  # a second call only concludes
    one, three = ((tmp_path / f"run{workers}" / "lengths.json").read_bytes() for workers in (1, 3))
    assert one == three == b"[[3, 14]]"
