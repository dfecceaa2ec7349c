"""Run folders for a report, an evaluation or a continued training: results, metrics, environments, configurations."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from dfer import config, config_files
from dfer.evaluation.results import save_result
from dfer.jobs.answering import config_of
from dfer.jobs.config import RunConfig
from dfer.report.compare import compare
from dfer.report.compare_page import compare_page
from dfer.report.compare_tables import markdown as compare_markdown
from dfer.report.compare_tables import text as compare_text
from dfer.report.crossval import summarise
from dfer.report.tables import markdown, text_table
from dfer.report.write import texts, write_report
from dfer.run import folder
from dfer.run.journal import kept_lines
from dfer.storage import Folder
from dfer.text_files import write_text
from tests import fake_runs
from tests.hostile import configs, values
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 260
SCRIPT = "<script>alert(1)</script>"
FILES = ("results/test.json", "metrics.jsonl", "environment.json", "config.yaml")
BESIDE = ("results/other-shuffled.json", "results/test_predictions.csv")
"""Read by reports and comparisons, where they are there."""
DRAWN_EVERY = 20
"""A page takes a second; the rest of a report does not."""


@dataclass
class Seeds:
    """A run of one fold, by file, and the configuration of one."""

    files: dict[str, bytes]
    config: RunConfig


def seeds(folder: Path) -> Seeds:
    run = fake_runs.write_fold(folder / "run", fake_runs.result(fold=1), curves=False)
    records = fake_runs.metrics(fold=1, epochs=2, steps_per_epoch=20)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen = config_files.load(
        [configs.DEMO], RunConfig, ["epochs=50", "published={uar: 59.61, war: 71.25, source: a paper}"]
    )
    (run / "config.yaml").write_text(config.to_yaml(chosen))
    save_result(fake_runs.result(fold=1, epochs=50), Folder(run), name=BESIDE[0])
    fake_runs.write_predictions(run, fake_runs.result(fold=1))
    return Seeds({file: (run / file).read_bytes() for file in (*FILES, *BESIDE)}, chosen)


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    draw = rng("runs")
    yield _case(seeds, "as it was written", {}, draw=True)
    settings = config.to_plain(seeds.config)
    result, environment = json.loads(seeds.files[FILES[0]]), json.loads(seeds.files[FILES[2]])
    texts = dict.fromkeys(("dataset", "method", "checkpoint", "finished", "validation", "generated"), SCRIPT)
    scripts = {
        "results/test.json": values.as_json({**result, **texts}),
        "environment.json": values.as_json({**environment, "device": SCRIPT, SCRIPT: 1}),
        "metrics.jsonl": _lines(
            {"kind": SCRIPT, "step": 1, SCRIPT: 2}, {"kind": "train", "step": 2, "lr": {SCRIPT: 1, "b": 2}}
        ),
        "config.yaml": yaml.safe_dump({**settings, SCRIPT: SCRIPT}).encode(),
    }
    yield _case(seeds, "scripts everywhere", scripts, draw=True)
    classes = [SCRIPT, "\x1b[2J", "é" * 300, "a|b", "", " ", "$x$"]
    yield _case(seeds, "scripts as classes", {FILES[0]: values.as_json({**result, "classes": classes})}, draw=True)
    for name, data in METRICS.items():
        yield _case(seeds, f"metrics: {name}", {"metrics.jsonl": data()}, draw=name in DRAWN)
    for name, text in configs.TEXTS.items():
        yield _case(seeds, f"config.yaml: {name}", {"config.yaml": text.encode()})
    for tree in values.drawn(values.trees(), 60):
        key = draw.choice(sorted(result))
        yield _case(seeds, f"{key} {tree!r:.50}", {FILES[0]: values.as_json({**result, key: tree})})
        yield _case(seeds, f"published {tree!r:.50}", {"config.yaml": values.as_json({**settings, "published": tree})})
    for name, tricks in TRICKS.items():
        reads = _reads(seeds, draw=False)
        if name == "metrics.jsonl of 3 GiB":
            del reads["metrics"]  # a continued run takes them over as a whole, however long they are
        yield Case(name=name, write=lambda at, tricks=tricks: tricks(_written(seeds, at, {})), reads=reads)
    yield MUTATED
    for number in range(COUNT):
        file = draw.choice((*FILES, *BESIDE))
        yield _case(seeds, *_mutated(file, seeds.files[file], draw), draw=number % DRAWN_EVERY == 0)


def _mutated(file: str, data: bytes, draw: random.Random) -> tuple[str, dict[str, bytes]]:
    act = draw.randrange(3)
    if file.endswith(".csv"):
        how, text = values.damaged(data, draw)
        return f"{file}: {how}", {file: text}
    if act == 0 and file != "metrics.jsonl":
        tree = yaml.safe_load(data)
        return f"{file}: a changed tree", {file: values.as_json(values.changed(tree, draw))}
    if act == 0:
        lines = data.splitlines()
        changed = [values.as_json(values.changed(json.loads(draw.choice(lines)), draw)) for _ in range(20)]
        return f"{file}: changed lines", {file: b"\n".join([*lines, *changed])}
    how, text = values.broken_json(data, draw) if act == 1 else values.damaged(data, draw)
    return f"{file}: {how}", {file: text}


def _written(seeds: Seeds, at: Path, files: dict[str, bytes]) -> Path:
    for file, data in {**seeds.files, **files}.items():
        path = at / "run" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return at / "run"


def _case(seeds: Seeds, name: str, files: dict[str, bytes], *, draw: bool = False) -> Case:
    reads = _reads(seeds, draw=draw)
    if draw or {*files} & {*BESIDE}:
        reads["compare"] = _compare
    return Case(name=name, write=lambda at: _written(seeds, at, files), reads=reads)


def _reads(seeds: Seeds, *, draw: bool) -> dict[str, Callable[[Path], object]]:
    reads: dict[str, Callable[[Path], object]] = {
        "summary": _summary,
        "evaluate": lambda at: config_of(str(at / "run")),
        "continue": lambda at: folder.check(Folder(at / "run"), seeds.config),
        "metrics": lambda at: kept_lines(Folder(at / "run").text("metrics.jsonl") or "", 10),
    }
    if draw:
        reads["report"] = _report
    return reads


def _summary(at: Path) -> None:
    report = summarise(Folder(at / "run"), RunConfig)
    text_table(report)
    assert SCRIPT not in markdown(report), "a script in the Markdown"
    for name, text in texts(report).items():
        write_text(Folder(at / "told"), name, text)


def _compare(at: Path) -> None:
    found = compare([Folder(at / "run")], RunConfig)
    compare_text(found)
    assert SCRIPT not in compare_markdown(found), "a script in the Markdown of a comparison"


def _report(at: Path) -> None:
    write_report(Folder(at / "run"), RunConfig)
    assert SCRIPT not in (at / "run" / "report" / "index.html").read_text(), "a script in the page"
    assert SCRIPT not in compare_page(compare([Folder(at / "run")], RunConfig)), "a script in the page of a comparison"


def _lines(*records: object) -> bytes:
    return b"".join(values.as_json(record) + b"\n" for record in records)


DRAWN = ("huge numbers", "huge steps", "a thousand groups", "spread", "rates below nothing")
METRICS: dict[str, Callable[[], bytes]] = {
    "huge numbers": lambda: _lines(*({"kind": "train", "step": n, "loss": x} for n, x in enumerate(values.NUMBERS))),
    "huge steps": lambda: _lines(*({"kind": "train", "step": x, "loss": 1} for x in values.NUMBERS)),
    "a million metrics": lambda: _lines(
        *({"kind": "train", "step": n, **{f"m{n}_{k}": 1 for k in range(1000)}} for n in range(200))
    ),
    "a thousand groups": lambda: _lines(
        *({"kind": "train", "step": n, "lr": {f"g{k}": 1e-3 for k in range(1000)}} for n in range(3))
    ),
    "deep records": lambda: b'{"step": 1, "a": ' + b'{"a": ' * 900 + b"1" + b"}" * 901 + b"\n",
    "many lines": lambda: _lines({"kind": "train", "step": 1, "loss": 1}) * 100_000,
    "no line": lambda: b"x" * 5_000_000,
    "lines of nothing": lambda: b"\n" * 200_000,
    "spread": lambda: _lines(
        *({"kind": "eval", "step": s, "uar": v, "war": v} for s in (-1e308, 0, 1e308) for v in (1e308, -1e308, 1e-320))
    ),
    "rates below nothing": lambda: _lines(
        *({"kind": "train", "step": n, "lr": {"a": -1.0, "b": 0.0}} for n in range(4))
    ),
}


def _as_link(file: str, target: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / file).unlink()
        (run / file).symlink_to(target)

    return write


def _large(file: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with (run / file).open("r+b") as opened:
            opened.truncate(3 * 2**30)

    return write


def _as_folder(file: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / file).unlink()
        (run / file).mkdir()

    return write


TRICKS: dict[str, Callable[[Path], object]] = {
    **{f"{file} is a folder": _as_folder(file) for file in FILES},
    **{f"{file} of 3 GiB": _large(file) for file in FILES},
    **{f"{file} is a link to itself": _as_link(file, Path(file).name) for file in FILES},
    "folds of strange names": lambda run: [
        shutil.copytree(run / "results", run / name / "results")
        for name in ("fold_1", "fold_\u0661", "fold_999", "fold_x", "fold_01")
    ],
}
