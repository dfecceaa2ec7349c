"""Configurations as files: found by path or name, joined without overruling each other, laid over their bases."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dfer import __main__ as cli
from dfer import config_files
from dfer.config import ConfigProblem
from dfer.config_files import find, is_run_folder, load, names, shown
from dfer.data.config import DataConfig
from dfer.data.recipes import ClipAugment, DferClipAugment, DkClipAugment
from dfer.jobs.config import load_run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Sgd:
    name: Literal["sgd"]
    lr: float


@dataclass(frozen=True, kw_only=True)
class Adam:
    name: Literal["adam"]
    lr: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Run:
    optim: Sgd | Adam
    epochs: int = 5
    rates: dict[str, float] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    place: str = "runs"


def write(folder: Path, **texts: str) -> None:
    """Files `NAME.yaml` in the working folder of a test."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*files: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigProblem) as caught:
        load(files, Run, overrides)
    return str(caught.value)


# --- bases


def test_base_files_merge_and_another_name_replaces(here: Path) -> None:
    write(here, base="optim: {name: sgd, lr: 1.0}\nepochs: 3\nrates: {a: 1, b: 2}\nsteps: [1, 2]")
    write(
        here, a="base: base.yaml\noptim: {lr: 2}\nrates: {b: 5}\nsteps: [3]", b="base: base.yaml\noptim: {name: adam}"
    )
    optim = Sgd(name="sgd", lr=2.0)
    assert load(["a.yaml"], Run) == Run(optim=optim, epochs=3, rates={"a": 1.0, "b": 5.0}, steps=(3,))
    assert load(["b.yaml"], Run).optim == Adam(name="adam")


def test_null_takes_an_entry_of_the_base_away(here: Path) -> None:
    write(here, base="optim: {name: adam}\nrates: {a: 1, b: 2}", a="base: base.yaml\nrates: {a: null}")
    assert load(["a.yaml"], Run).rates == {"b": 2.0}


def test_a_base_is_seen_from_the_file_that_names_it(here: Path) -> None:
    (here / "sub").mkdir()
    write(here / "sub", base="optim: {name: adam}", a="base: base.yaml")
    write(here, base="optim: {name: sgd, lr: 1}")
    assert load(["sub/a.yaml"], Run).optim == Adam(name="adam")


def test_circles_are_refused(here: Path) -> None:
    said = ".yaml: expected at most 32 files in one configuration, got one more. Break the circle of `base:`."
    write(here, a="base: [b.yaml]", b="base: a.yaml", many=f"base: [{', '.join(['many.yaml'] * 9)}]")
    assert refused("a.yaml") == f"a{said}" and refused("many.yaml") == f"many{said}"


@pytest.mark.parametrize("base", ["3", "{a: b}", "[a.yaml, 3]"])
def test_a_base_that_is_no_file(here: Path, base: str) -> None:
    write(here, a=f"base: {base}\noptim: {{name: adam}}")
    assert refused("a.yaml").startswith("a.yaml: base: expected a file or a list of files, got ")


# --- joins


def test_joined_files_give_what_each_says(here: Path) -> None:
    write(here, a="optim: {name: sgd, lr: 1}\nrates: {a: 1}\nsteps: [1]", b="epochs: 7\nrates: {b: 2}\nsteps: [1]")
    joined = Run(optim=Sgd(name="sgd", lr=1.0), epochs=7, rates={"a": 1.0, "b": 2.0}, steps=(1,))
    assert load(["a.yaml", "b.yaml"], Run) == load(["b.yaml", "a.yaml"], Run) == joined
    write(here, c="base: [a.yaml, b.yaml]\nrates: {b: null}")
    assert load(["c.yaml"], Run).rates == {"a": 1.0}
    assert load(["a.yaml", "b.yaml"], Run, ["epochs=9", "rates.a=3"]).epochs == 9


def test_different_values_are_refused_with_both_files_named(here: Path) -> None:
    write(here, a="optim: {name: sgd, lr: 1}\nepochs: 3", b="optim: {lr: 2}\nepochs: 4\nsteps: [1]", c="epochs: 3")
    said = refused("a.yaml", "b.yaml", "c.yaml")
    do = "Decide with epochs=VALUE, or in a file that has both as its base"
    assert said.startswith(
        "a.yaml + b.yaml + c.yaml: optim.lr: expected one value, got 1 from a.yaml and 2 from b.yaml. "
    )
    assert f"epochs: expected one value, got 3 from a.yaml and 4 from b.yaml and 3 from c.yaml. {do}" in said
    assert "steps" not in said


def test_lists_of_two_files_are_different_values_and_so_are_a_mapping_and_a_number(here: Path) -> None:
    write(here, a="optim: {name: adam}\nsteps: [1]\nrates: {a: 1}", b="steps: [1, 2]\nrates: {a: {b: 1}}")
    said = refused("a.yaml", "b.yaml")
    assert "steps: expected one value, got [1] from a.yaml and [1, 2] from b.yaml." in said
    assert "rates.a: expected one value, got 1 from a.yaml and {'b': 1} from b.yaml." in said


def test_an_override_or_the_file_over_both_decides(here: Path) -> None:
    write(here, a="optim: {name: sgd, lr: 1}\nepochs: 3", b="optim: {name: adam}\nepochs: 4")
    said = refused("a.yaml", "b.yaml", overrides=("epochs=5",))
    assert (
        "epochs" not in said and "optim.name: expected one value, got 'sgd' from a.yaml and 'adam' from b.yaml" in said
    )
    assert load(["a.yaml", "b.yaml"], Run, ["epochs=5", "optim.name=sgd", "optim.lr=1"]) == Run(
        optim=Sgd(name="sgd", lr=1.0), epochs=5
    )
    write(here, c="base: [a.yaml, b.yaml]\noptim: {name: adam}\nepochs: 6")
    assert load(["c.yaml"], Run) == Run(optim=Adam(name="adam"), epochs=6)
    write(here, d="base: [a.yaml, b.yaml]\noptim: {name: adam}")
    assert refused("d.yaml").startswith("d.yaml: epochs: expected one value, got 3 from a.yaml and 4 from b.yaml.")
    assert load(["d.yaml"], Run, ["epochs=6"]).epochs == 6


def test_a_conflict_below_a_base_names_the_files_that_differ(here: Path) -> None:
    write(here, a="epochs: 3", b="epochs: 4", c="base: [a.yaml, b.yaml]", d="epochs: 5\noptim: {name: adam}")
    assert "got 3 from a.yaml and 4 from b.yaml and 5 from d.yaml." in refused("c.yaml", "d.yaml")


def test_values_without_a_name_do_not_count_where_another_file_chooses_another(here: Path) -> None:
    """As DFEW's brightness, which belongs to DFER-CLIP's recipe, with a method that has its own."""
    write(here, a="augment: {name: dk_clip, grey: 0.5}\nshards: x", b="augment: {brightness: 0.5}")
    write(here, c="augment: {name: dfer_clip, flip: 0.25}\nshards: x", d="base: [a.yaml, b.yaml]\naugment: {flip: 1}")
    for files in (["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]):
        assert load(files, DataConfig).augment == DkClipAugment(grey=0.5)
    assert load(["d.yaml"], DataConfig).augment == DkClipAugment(grey=0.5, flip=1.0)
    assert load(["c.yaml", "b.yaml"], DataConfig).augment == DferClipAugment(brightness=0.5, flip=0.25)
    chosen = load(["b.yaml"], DataConfig, ["shards=x", "augment.name=clip"]).augment
    assert chosen == ClipAugment()
    write(here, e="augment: {name: cnn}")
    with pytest.raises(ConfigProblem, match=r"augment.name: expected one value, got 'dk_clip' from a.yaml and 'cnn'"):
        load(["a.yaml", "e.yaml"], DataConfig)


def test_a_wrong_key_of_the_default_recipe_is_named(here: Path) -> None:
    write(here, a="shards: x\naugment: {brightnes: 0.5}", b="shards: x\naugment: {name: dfer, flip: 0.5}")
    with pytest.raises(ConfigProblem, match=r"augment.brightnes: unknown key. Did you mean 'brightness'"):
        load(["a.yaml"], DataConfig)
    with pytest.raises(ConfigProblem, match=r"augment.name: unknown 'dfer'. Did you mean 'dfer_clip'"):
        load(["b.yaml"], DataConfig)


def test_defaults_lie_below_all_files(here: Path) -> None:
    write(here, a="optim: {name: adam}", b="place: mine")
    assert load(["a.yaml"], Run, defaults={"place": "there"}).place == "there"
    assert load(["a.yaml", "b.yaml"], Run, defaults={"place": "there"}).place == "mine"


# --- names


def test_names_work_from_any_folder_and_a_path_goes_first(here: Path) -> None:
    assert (
        find("methods/dfer_clip") == find("methods/dfer_clip.yaml") == ROOT / "configs" / "methods" / "dfer_clip.yaml"
    )
    assert load_run(["demo"]).data.shards == "demo/shards"
    (here / "methods").mkdir()
    assert find("methods/dfer_clip").parent == ROOT / "configs" / "methods"
    write(here / "methods", dfer_clip="epochs: 1")
    assert find("methods/dfer_clip.yaml") == Path("methods/dfer_clip.yaml")
    write(here, mine="base: [methods/linear.yaml, sets/mafw]", linear="base: [demo]")
    write(here / "methods", linear="epochs: 2")
    assert config_files.read(["mine.yaml"])["epochs"] == 2


def test_names_are_those_of_the_files_and_paths_that_mean_one_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {"demo", "methods/dfer_clip", "sets/ferv39k", "clusters/slurm_cpu"} <= {*names()}
    assert shown(Path("configs/sets/dfew.yaml")) == shown(find("sets/dfew")) == "sets/dfew"
    assert shown(Path("pyproject.toml")) == "pyproject.toml"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("methods/dferclip", "Did you mean 'methods/dfer_clip'"),
        ("sets/dfw", "Did you mean 'sets/dfew'"),
        ("configs/demo.yaml", "Did you mean 'demo'"),
        ("configs/dfew/dfer_clip.yaml", "'methods/dfer_clip'"),
        ("../pyproject", "Known: ckplus48/resnet18, "),
        ("x\0y", "Known: "),
    ],
)
def test_an_unknown_name_lists_near_ones(name: str, said: str, here: Path) -> None:
    told = refused(name)
    assert "expected a YAML file or the name of a configuration, got neither. Correct it. " in told and said in told


def test_a_folder_is_no_configuration(here: Path) -> None:
    assert "got one that cannot be read (something else than a file)" in refused(str(here))


def test_a_run_folder_is_told_from_configurations(here: Path) -> None:
    (here / "runs").mkdir()
    assert is_run_folder(["runs"]) and is_run_folder(["s3://bucket/run"])
    assert not is_run_folder(["methods/dfer_clip"]) and not is_run_folder(["runs", "sets/dfew"])


# --- runs


def test_a_join_has_a_run_folder_and_the_numbers_of_its_row(here: Path) -> None:
    run = load_run(["sets/dfew", "methods/dfer_clip"])
    assert (run.run, run.data.shards, run.model.name) == ("runs/dfew/dfer_clip", "data/dfew", "dfer_clip")
    assert run.published is not None and (run.published.uar, run.published.war) == (59.61, 71.25)
    changed = load_run(["methods/dfer_clip", "sets/dfew"], ["run=x", "published=null"])
    assert (changed.run, changed.published) == ("x", None)
    write(here, mine="base: methods/dfer_clip\nseed: 2")
    own = load_run(["mine.yaml", "sets/mafw"])
    assert (own.run, own.published, own.seed) == ("runs/mafw/mine", None, 2)
    with pytest.raises(ConfigProblem, match="run: required, but missing"):
        load_run(["mine.yaml"], ["data.shards=x"])


def test_a_set_alone_is_no_run() -> None:
    with pytest.raises(ConfigProblem, match=r"sets/dfew: run: required.*epochs: required.*model: required"):
        load_run(["sets/dfew"])


def test_an_unknown_set_of_a_join_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "methods/dfer_clip", "sets/dfeww"]) == 2
    assert capsys.readouterr().err == (
        "error: sets/dfeww: expected a YAML file or the name of a configuration, got neither. Correct it. "
        "Did you mean 'sets/dfew' or 'sets/afew'?\n"
    )
