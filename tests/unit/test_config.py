"""Configuration: what is read, what is refused, and that each message names the key and the remedy."""

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfer import config, config_files
from dfer.config import ConfigProblem
from dfer.jobs.config import RunConfig
from launch.cluster import SlurmCluster, load_cluster

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Sgd:
    name: Literal["sgd"]
    lr: float
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Adam:
    name: Literal["adam"]
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Run:
    optim: Sgd | Adam
    epochs: int = 5
    note: str | None = None
    rates: dict[str, float] = field(default_factory=dict)
    mode: Literal["a", "b", "010"] = "a"
    place: str = config.key("runs", path=True)
    cache: str | None = config.key(None, path=True)
    words: dict[str, str] = field(default_factory=dict)
    flag: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigProblem(f"epochs: expected at least 1, got {self.epochs}. Train for one epoch or more")


def load(tmp_path: Path, text: str, *overrides: str) -> Run:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return config_files.load([path], Run, overrides)


def test_reads_values_defaults_and_overrides(tmp_path: Path) -> None:
    run = load(tmp_path, "optim: {name: sgd, lr: 1}\nrates: {a: 0.5}", "epochs=7", "optim.nesterov=true", "rates.b=2")
    assert run == Run(optim=Sgd(name="sgd", lr=1.0, nesterov=True), epochs=7, rates={"a": 0.5, "b": 2.0})
    assert isinstance(run.optim.lr, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {name: sgd, lrr: 1}", "optim.lrr: unknown key. Did you mean 'lr'?"),
        ("optim: {name: sgd}", "optim.lr: required, but missing. Add it to the file or as optim.lr=VALUE"),
        ("optim: {name: sgd, lr: fast}", "optim.lr: expected a number, got 'fast' (str)"),
        ("optim: {name: sgd, lr: true}", "optim.lr: expected a number, got True (bool)"),
        (
            "optim: {name: sgd, lr: 1e-5}",
            "optim.lr: expected a number, got '1e-5' (str). YAML reads 1e-5 as text: "
            "write it with a point, 1.0e-5, and no quotes",
        ),
        ("optim: {name: sgd, lr: .inf}", "optim.lr: expected a number, got inf"),
        ("optim: {name: sgdd, lr: 1}", "optim.name: unknown 'sgdd'. Did you mean 'sgd'?"),
        ("optim: {name: adam, nesterov: true}", "optim.nesterov: unknown key"),
        ("optim: [1]", "optim.name: unknown None"),
        ("optim: {name: [1]}", "optim.name: unknown [1]"),
        ("optim: {name: adam, lr: 9223372036854775808}", "a whole number of more than 64 bits"),
        ("optim: {name: adam}\nnote: [[[[1]]]]", "note: expected text, got [[[[...]]]] (list)"),
        ("optim: {name: adam, betas: 3}", "optim.betas: expected a list, got 3"),
        ("optim: {name: adam}\nepochs: 2.5", "epochs: expected a whole number, got 2.5 (float)"),
        ("optim: {name: adam}\nepochs: 0", "epochs: expected at least 1, got 0. Train for"),
        ("optim: {name: adam}\nmode: c", "mode: expected 'a' or 'b' or '010', got 'c'"),
        ("optim: {name: adam}\nrates: [1]", "rates: expected a mapping, got [1]"),
        ("- 1", "expected a mapping of keys, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_messages(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert str(tmp_path / "c.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load(tmp_path, "optim: {name: sgd, lr: x, nesterov: 3}\nepoch: 1")
    assert all(key in str(caught.value) for key in ("optim.lr", "optim.nesterov", "epoch: unknown"))


TEXTS = [
    "/data/lr #1",
    "010",
    "0x10",
    "1_000",
    "1:30",
    "yes",
    "null",
    "true",
    "~x",
    "'a'",
    '"a"',
    "a: b",
    "{a: 1}",
    "[1]",
    "&a *b",
    "!x",
    "- a",
    " a ",
    "漢 é",
    "a\nb",
    "#",
    "%",
    "|",
    "2026-01-01",
    "a=b",
    "\\",
    "\t",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_the_command_line_is_that_text(text: str, tmp_path: Path) -> None:
    """And stays it on its way through the resolved configuration, as launchers and run folders keep it."""
    run = load(tmp_path, "optim: {name: adam}", f"place=x{text}", f"words.a=x{text}", f"note=x{text}")
    assert (run.place, run.words, run.note) == (f"x{text}", {"a": f"x{text}"}, f"x{text}")
    assert config.load_text(config.to_yaml(run).encode(), Run, where="c.yaml") == run
    if not text.startswith("~"):
        assert load(tmp_path, "optim: {name: adam}", f"place={text}").place == text
    if text != "null":
        assert load(tmp_path, "optim: {name: adam}", f"note={text}").note == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text[0] != "~"))
def test_any_text_comes_through(text: str) -> None:
    run = config.load_text(b"optim: {name: adam}", Run, [f"place={text}"], where="c.yaml")
    assert run.place == text
    assert config.load_text(config.to_yaml(run).encode(), Run, where="c.yaml") == run


def test_null_and_nothing_are_no_text_where_there_may_be_none(tmp_path: Path) -> None:
    for value in ("", "null"):
        run = load(
            tmp_path,
            "optim: {name: adam}\nnote: x\ncache: y\nwords: {a: z}",
            f"note={value}",
            f"cache={value}",
            f"words.a={value}",
        )
        assert (run.note, run.cache, run.words) == (None, None, {})


def test_words_of_a_choice_are_text_too(tmp_path: Path) -> None:
    assert load(tmp_path, "optim: {name: adam}", "mode=010").mode == "010"
    assert load(tmp_path, "optim: {name: adam}", "optim.name=sgd", "optim.lr=2").optim == Sgd(name="sgd", lr=2.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=010", "epochs: expected a YAML value, got '010' ('010' is not read as it is written: write it in dec"),
        ("epochs=0x10", "'0x10' is not read as it is written"),
        ("epochs=1_000", "'1_000' is not read as it is written"),
        ("epochs=1:30", "'1:30' is not read as it is written"),
        ("epochs=7 #8", "got '7 #8' (what follows ` #` is a comment in YAML and would be left out). Correct it."),
        ("rates={a: 1} # x", "what follows ` #` is a comment in YAML"),
        ("rates.a=1_0.5", "'1_0.5' is not read as it is written"),
        ("flag=yes", "flag: expected a YAML value, got 'yes' ('yes' is not read as it is written: write it as true or"),
        ("flag=off", "'off' is not read as it is written"),
        ("optim={name: adam, lr: 0x1}", "'0x1' is not read as it is written"),
        ("epochs='2'", "epochs: expected a whole number, got '2' (str)"),
        ("place=", "place: expected a path or URL, got nothing. Write one, or leave the key out"),
        ("place=~no_such_user/x", "place: ~no_such_user/x: expected a home folder, got none for ~no_such_user. Write"),
    ],
)
def test_what_reads_differently_from_how_it_is_written_is_refused(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem) as caught:
        load(tmp_path, "optim: {name: adam}", override)
    assert said in str(caught.value)


@pytest.mark.parametrize("line", ["place: /data/lr #1", "epochs: 010", "flag: no", "cache: ~", "words: {a: 0x1}"])
def test_files_are_held_to_it_too(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblem, match=r"put the text in quotes|or in quotes where it is text"):
        load(tmp_path, f"optim: {{name: adam}}\n{line}")
    assert load(tmp_path, "optim: {name: adam}  # adam\nplace: '/data/lr #1'  # a place").place == "/data/lr #1"


def test_the_home_folder_is_known_wherever_a_path_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("optim: {name: adam}\nplace: ~/lr\nnote: ~/lr")
    run = config.load_text(b"{optim: {name: adam}, cache: '~'}", Run, ["place=~/a b"], where="x")
    assert (run.place, run.cache) == (f"{tmp_path}/a b", str(tmp_path))
    for path in (Path("~/base.yaml"), tmp_path / "c.yaml"):
        (tmp_path / "c.yaml").write_text("base: ~/base.yaml")
        run = config_files.load([path], Run, ["cache=s3://b/~"])
        assert (run.place, run.cache, run.note) == (f"{tmp_path}/lr", "s3://b/~", "~/lr")


def test_every_key_that_names_a_place_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs and of cluster files."""
    monkeypatch.setenv("HOME", "/home/x")
    keys = ("run", "data.shards", "data.cache", "model.towers.arch", "model.towers.pretrained")
    keys += ("model.text",)
    for part in (keys, ("model.start",)):  # which goes with no other source of weights
        run = config_files.load([CONFIGS / "demo.yaml"], RunConfig, [f"{key}=~/{key}.yaml" for key in part])
        assert {key: operator.attrgetter(key)(run) for key in part} == {key: f"/home/x/{key}.yaml" for key in part}
    assert load_cluster(CONFIGS / "clusters" / "slurm.yaml", SlurmCluster, ["folder=~/l"]).folder == "/home/x/l"


@pytest.mark.parametrize("override", ["epochs", "=3", "epochs=[1"])
def test_bad_overrides_are_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigProblem, match=r"expected (key.sub=value|a YAML value)"):
        load(tmp_path, "optim: {name: adam}", override)


@pytest.mark.slow("a hundred drawn configurations")
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 2**63 - 1), st.none() | st.text())
def test_resolved_yaml_reads_back_to_the_same_value(lr: float, epochs: int, note: str | None) -> None:
    run = Run(optim=Adam(name="adam", lr=lr), epochs=epochs, note=note)
    assert config.load_text(config.to_yaml(run).encode(), Run, where="c.yaml") == run
