"""Configurations, overrides and architectures: tags, aliases, bombs, paths, values of other shapes."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dfer import config, config_files
from dfer.jobs.config import RunConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.towers import Towers
from dfer.run.changes import computed
from tests.hostile import values
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case
from tests.reference.recipe import CLIP_LAYOUT

COUNT = 570
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20))]
)
TEXTS = {
    "laughs": LAUGHS,
    "laughs as a run": LAUGHS + "\nrun: *a19",
    "an alias": "run: &x a\nselect: *x",
    "a list inside itself": "run: &x [*x]",
    "a merge of aliases": "a: &a {run: x}\n<<: *a",
    "a merge": "<<: {run: x}",
    "a merge of a merge": "<<: [{run: x}, {<<: {run: y}}]",
    "a merge of text": "<<: x",
    "deep lists": "run: " + "[" * 60_000,
    "deep mappings": "{a: " * 15_000,
    "deep dashes": "- " * 30_000,
    "deep questions": "? " * 30_000,
    "deep and closed": "run: " + "[" * 31 + "]" * 31,
    "too many bytes": "#" * 70_000,
    "many keys": "".join(f"k{n}: 1\n" for n in range(7000)),
    "a key twice": "run: a\nrun: b",
    "a long key": "a" * 1100 + ": 1",
    "a longer key": "? " + "a" * 60_000 + "\n: 1",
    "sixties": "epochs: " + "1:" * 30_000 + "1",
    "sixties and a half": "epochs: " + "1:" * 30_000 + "1.5",
    "a long number": "epochs: " + "9" * 60_000,
    "a long hexadecimal": "epochs: 0x" + "f" * 60_000,
    "a number of nothing": "epochs: 0b_",
    "no date": "run: 2026-13-99",
    "a date": "run: 2026-01-01",
    "a time": "run: 2026-01-01 99:99:99",
    "an equals sign": "run: =",
    "infinity": "val_share: .inf",
    "no number": "val_share: .nan",
    "two documents": "run: a\n---\nrun: b",
    "many documents": "---\n" * 10_000,
    "directives": "%YAML 9.9\n%TAG ! tag:x,2026:\n---\nrun: !x a",
    "a tab": "run:\tx\n\tseed: 1",
    "quotes": "run: '" * 9999,
    "a block": "run: |\n" + " x\n" * 20_000,
    "a folded block": "run: >\n" + " x\n\n" * 15_000,
    "escapes": 'run: "' + "\\x1b[2J\\0" * 5000 + '"',
    "surrogates": 'run: "\\ud800"',
    "bidirectional": "run: \u202e",
    "null": "null",
    "text": "x",
    "a list": "[]",
    "nothing": "",
    "a set": "? a\n? b",
    "a key that is a list": "? [a]\n: 1",
    "a key that is null": "~: 1\nnull: 2",
    "keys of other kinds": "1: a\ntrue: b\n1.5: c\n.nan: d\n0x10: e",
    "a NUL": "run: a\0b",
    "UTF-16": "run: x",
    "bytes": "run: x",
    "a flow": "{" * 300 + "}" * 300,
    "commas": "run: [" + "," * 60_000 + "]",
    "colons": ":" * 60_000,
    "anchors": " ".join(f"&a{n}" for n in range(9000)),
    "carriage returns": "run: x\r" * 5000,
}
TAGS = (
    "!!python/object/apply:os.system",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/new:os.system",
    "!!python/object:dfer.config.ConfigProblem",
    "!!binary",
    "!!timestamp",
    "!!int",
    "!!float",
    "!!bool",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!null",
    "!!str",
    "!x",
    "!<tag:yaml.org,2002:python/tuple>",
    "!!python/tuple",
)
BASES = (
    "c.yaml",
    "../c.yaml",
    "/dev/zero",
    "/dev/urandom",
    "/proc/self/mem",
    "/proc/self/environ",
    ".",
    "/",
    "pipe",
    "loop",
    "large",
    "[a]",
    "~",
    "'a\\0b'",
    "http://127.0.0.1:9/x",
    '"\\ud800"',
    "a" * 300,
    "a/" * 3000,
)


def seeds(folder: Path) -> dict[str, Any]:
    """The demo's configuration."""
    found: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    return found


def cases(seeds: dict[str, Any], mark: Path) -> Iterator[Case | None]:
    draw = rng("configs")
    whole = yaml.safe_dump(seeds).encode()
    yield _case("the demo's", whole)
    for name, text in TEXTS.items():
        data = (
            text.encode("utf-16") if name == "UTF-16" else b"run: \xff\xfe" if name == "bytes" else text.encode("utf-8")
        )
        yield _case(name, data)
        yield _case(f"{name}, at the end of the demo's", whole + data)
    for tag in TAGS:
        for value in (f"['touch {mark}']", "x", "''", "{a: b}"):
            yield _case(f"{tag} {value}", f"run: {tag} {value}\n".encode())
    for base in BASES:
        yield _case(f"base {base[:30]}", f"base: {base}\n".encode(), more=_neighbours)
    for text in _overrides(mark):
        yield _case(f"override {text[:40]!r}", whole, overrides=[text])
    yield from _architectures(draw)
    yield MUTATED
    for tree in values.drawn(values.trees(), 60):
        place = draw.choice([key for key in seeds if key != "base"])
        yield _case(f"{place} {tree!r:.50}", values.as_json({**seeds, place: tree}))
    while True:
        if draw.random() < 0.5:
            yield _case("a changed tree", values.as_json(values.changed(seeds, draw)))
        else:
            how, data = values.damaged(whole, draw)
            yield _case(how, data)


def _case(
    name: str, data: bytes, *, overrides: list[str] | None = None, more: Callable[[Path], None] | None = None
) -> Case:
    def write(at: Path) -> None:
        (at / "c.yaml").write_bytes(data)
        if more is not None:
            more(at)

    def load(at: Path) -> None:
        _used(config_files.load([at / "c.yaml"], RunConfig, overrides or []))

    reads: dict[str, Callable[[Path], object]] = {"file": load}
    if not overrides and more is None:
        reads["text"] = lambda at: _used(config.load_text(data, RunConfig, where=at / "config.yaml"))
    return Case(name=name, write=write, reads=reads)


def _used(chosen: RunConfig) -> None:
    """What becomes of every configuration that is read."""
    assert config.load_text(config.to_yaml(chosen).encode(), RunConfig, where="x") == chosen
    computed(RunConfig, config.to_plain(chosen))


def _neighbours(at: Path) -> None:
    os.mkfifo(at / "pipe")
    (at / "loop").symlink_to("loop")
    with (at / "large").open("wb") as file:
        file.truncate(8 * 2**30)


def _overrides(mark: Path) -> list[str]:
    nested = ".".join("a" * 5000)
    values_ = (
        f"!!python/object/apply:os.system ['touch {mark}']",
        "&x [*x]",
        "[" * 10_000,
        "9" * 5000,
        "0x" + "f" * 5000,
        "2026-13-99",
        "\ud800",
        "\udcff",
        "\0",
        "{a: {b: 1}}",
        "1:1:1",
        "~",
        "'",
        "a: b: c",
        "\x1b[2J",
    )
    keys = (
        "run",
        "seed",
        "data.frames",
        "optim.groups.image.lr",
        "model.name",
        "checkpoint.every_minutes",
        "\x1b",
        "..",
        "data.",
        ".data",
        "run.x.y",
        "\ud800",
        "base",
        "<<",
    )
    return [
        *(f"run={value}" for value in values_),
        *(f"{key}=1" for key in keys),
        f"{nested}=1",
        "=",
        "",
        "run",
        "a=" * 5000,
        "model={name: [1]}",
        "optim={name: {a: b}}",
        "schedule={}",
        "data.augment=[[[]]]",
        "seed=-1",
        "batch=1e400",
    ]


def _architectures(draw: random.Random) -> Iterator[Case]:
    texts = {
        f"arch {how}": text for how, text in (values.broken_json(values.as_json(CLIP_LAYOUT), draw) for _ in range(25))
    }
    for part, key in (
        ("vision_cfg", "layers"),
        ("vision_cfg", "width"),
        ("vision_cfg", "patch_size"),
        ("vision_cfg", "image_size"),
        ("vision_cfg", "head_width"),
        ("vision_cfg", "timm_model_name"),
        ("vision_cfg", "act_kwargs"),
        ("text_cfg", "heads"),
        ("text_cfg", "context_length"),
        ("text_cfg", "hf_model_name"),
        ("text_cfg", "layers"),
        ("text_cfg", "hf_tokenizer_name"),
    ):
        inner: Any = CLIP_LAYOUT[part]
        for value in (10**9, -1, 0, 1, "hf-hub:x/y", [1, 1, 1, 10**6], {"x": 1}, None, float("inf")):
            texts[f"arch {key} {value}"] = json.dumps({**CLIP_LAYOUT, part: {**inner, key: value}}).encode()
    for name, data in texts.items():
        yield Case(
            name=name,
            write=lambda at, data=data: (at / "x.json").write_bytes(data),
            reads={"towers": lambda at: Towers(TowersConfig(arch=str(at / "x.json")))},
        )
