"""Reports as files: the table's shape, pages that load and run nothing, text that stays text."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from dfer.emotions import BASIC7, MAFW11
from dfer.errors import CheckpointError
from dfer.evaluation.scores import RankMean
from dfer.jobs.config import RunConfig
from dfer.report import tables
from dfer.report.plots import apart, thinned
from dfer.report.tables import facts, markdown, short_names, table_rows
from dfer.report.write import summarise, text_table, write_report
from dfer.storage import Folder
from dfer.store.format import Overlap
from tests import fake_runs

EVIL = '"><script>document.title="pwned"</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Tags, attributes and text of a page, and whether every element that opens also closes."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def crossval(tmp_path_factory):
    run = fake_runs.write_crossval(tmp_path_factory.mktemp("dfew") / "dfew_dfer_clip")
    return run, write_report(Folder(run), RunConfig)


@pytest.fixture(scope="module")
def again(crossval, tmp_path_factory):
    """The folder of a second report of it, and the report."""
    folder = tmp_path_factory.mktemp("again") / "here"
    return folder, write_report(Folder(crossval[0]), RunConfig, out=Folder(folder))


@pytest.fixture(scope="module")
def page(crossval):
    return Page(Path(crossval[1].html).read_text())


@pytest.mark.slow("the first of the file: its fixture draws a whole report")
def test_the_three_files_lie_in_report(crossval):
    run, paths = crossval
    assert {p.name for p in (run / "report").iterdir()} == {"report.md", "report.json", "index.html"}
    assert paths.html == f"{run}/report/index.html"


@pytest.mark.slow("its fixture draws the report again")
def test_another_folder_may_be_named(again):
    assert again[1].markdown == f"{again[0]}/report.md"


def test_the_same_run_gives_the_same_bytes(crossval, again):
    for name in ("markdown", "json", "html"):
        assert Path(getattr(again[1], name)).read_bytes() == Path(getattr(crossval[1], name)).read_bytes()


def test_markdown_has_the_shape_of_the_published_fold_table(crossval):
    lines = Path(crossval[1].markdown).read_text().splitlines()
    head = lines.index("|  | happiness | sadness | neutral | anger | surprise | disgust | fear | UAR | WAR |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 11]]
    assert [row[0] for row in rows] == [*(f"fold {k}" for k in range(1, 6)), "**mean**", "std", "pooled", "published"]
    assert all(len(row) == 10 for row in rows)
    assert all(re.fullmatch(r"\d+\.\d\d", cell) for row in rows[:8] for cell in row[1:])
    assert rows[8][1:] == ["–"] * 7 + ["59.61", "71.25"]
    text = Path(crossval[1].markdown).read_text()
    assert "- published: Zhao & Patras, BMVC 2023, table 1; selection: best_on_test" in text
    assert "- mean: ours: 5 of 5 folds; selection: last; seed 1" in text
    assert "- std: sample standard deviation (n - 1) over folds" in text


def test_json_holds_counts_and_everything_to_make_the_table_again(crossval):
    plain = json.loads(Path(crossval[1].json).read_text())
    assert len(plain["results"]) == 5 and plain["missing_parts"] == []
    counts = [[sum(r["confusion"][i][j] for r in plain["results"]) for j in range(7)] for i in range(7)]
    assert plain["pooled"]["confusion"] == counts
    assert plain["published"] == {
        "uar": 59.61,
        "war": 71.25,
        "source": "Zhao & Patras, BMVC 2023, table 1",
        "selection": "best_on_test",
        "leaks_label": False,
        "note": "",
        "recall": {},
        "dataset": "",
    }
    assert (plain["selection"], plain["seeds"], plain["std_kind"][:6]) == ("last", [1], "sample")


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert not {"script", "link", "iframe", "object", "embed", "img", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert value.startswith("#"), (tag, name, value)
    text = " ".join(value for _, _, value in page.attributes)
    assert not re.search(r"https?:|//|javascript:", text)
    assert "default-src 'none'" in text


def test_styles_load_nothing_either(crossval):
    text = Path(crossval[1].html).read_text()
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", text))


def test_the_page_is_well_formed_with_unique_ids_that_exist(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert not page.open and len(ids) == len(set(ids))
    used = [value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert used and set(used) <= set(ids)


def test_the_page_shows_folds_pictures_config_and_environment(page):
    text = " ".join(page.texts)
    for expected in ("fold 5", "published", "Zhao & Patras", "num_contexts: 8", "NVIDIA H200", "fold_3/checkpoints/"):
        assert expected in text, expected
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert sum(label.startswith("Confusion matrix.") for label in labels) == 6
    curves = (
        "Training loss",
        "Learning rate, by parameter group",
        "UAR while training (%)",
        "WAR while training (%)",
        "Training clips per second",
        "Share of time waiting for data (%)",
    )
    assert set(curves) <= set(labels)


def test_every_count_of_the_pooled_matrix_is_in_its_picture(crossval, page):
    pooled = summarise(Folder(crossval[0]), RunConfig).pooled
    text = Path(crossval[1].html).read_text()
    start = text.index('aria-label="Confusion matrix. Sum over')
    drawn = re.findall(r">([^<>]+)</text>", text[start : text.index("</svg>", start)])
    cells = [str(cell) for row in pooled.confusion for cell in row if cell]
    assert all(drawn.count(cell) >= cells.count(cell) for cell in cells)


def test_whatever_a_run_folder_says_stays_text(tmp_path):
    found = fake_runs.result(
        num_folds=1,
        method=f"m {EVIL}",
        dataset=EVIL,
        checkpoint=EVIL,
        validation=EVIL,
        classes=("<b>a", EVIL, "neutral", "anger|x", "surprise", "$title", "fear"),
        confusion=fake_runs.result().confusion,
    )
    published = {"uar": 59.0, "war": 71.0, "source": EVIL}
    run = fake_runs.write_fold(tmp_path / "run", found, plain=fake_runs.config(run=EVIL, published=published))
    (run / "environment.json").write_text(json.dumps({"command": EVIL}))
    records = [{"kind": "train", "step": s, "lr": {EVIL: 1e-3}} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    paths = write_report(Folder(run), RunConfig)
    page = Page(Path(paths.html).read_text())
    assert "script" not in page.tags and "img" not in page.tags and not page.open
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert any(EVIL in text for text in page.texts), "the text itself is shown"
    assert "<" not in Path(paths.markdown).read_text()


def test_math_marks_in_names_are_not_typeset(tmp_path):
    found = fake_runs.result(
        num_folds=1, classes=("$a$", "$\\frac{", *BASIC7[2:]), confusion=fake_runs.result().confusion
    )
    drawn = Path(write_report(Folder(fake_runs.write_fold(tmp_path, found, curves=False)), RunConfig).html).read_text()
    assert re.search(r">\$a\$ +\d+</text>", drawn) and re.search(r">\$\\frac\{</text>", drawn)


@pytest.mark.usefixtures("no_drawing")
def test_a_run_without_curves_or_environment_still_reports(tmp_path):
    run = fake_runs.write_fold(tmp_path, fake_runs.result(num_folds=1), curves=False)
    (run / "environment.json").unlink()
    plain = yaml.safe_load((run / "config.yaml").read_text())
    del plain["published"]
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    paths = write_report(Folder(run), RunConfig)
    text = Path(paths.html).read_text()
    assert "No metrics.jsonl" in text and "published" not in Path(paths.markdown).read_text()
    assert "| test split |" in Path(paths.markdown).read_text() and "| std |" not in Path(paths.markdown).read_text()


def test_a_refused_mixture_leaves_no_report(tmp_path):
    run = fake_runs.write_crossval(tmp_path, curves=False)
    (run / "fold_2" / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(fold=2, batch=10)))
    with pytest.raises(CheckpointError, match=r"batch = 48"):
        write_report(Folder(run), RunConfig)
    assert not (run / "report").exists()


def test_the_terminal_table_is_aligned(tmp_path):
    report = summarise(Folder(fake_runs.write_crossval(tmp_path, classes=MAFW11, done=(1, 3), curves=False)), RunConfig)
    lines = text_table(report).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"-"}]
    table = [line for i, line in enumerate(lines[: rules[-1] + 1]) if i >= rules[0]]
    assert len({len(line) for line in table}) == 1
    assert lines[0] == "DFER-CLIP on MAFW, 2 of 5 folds, per cent"
    assert any(line.startswith("fold 2: no result yet") for line in table)
    ends = [[m.end() for m in re.finditer(r"\S+", line)][-13:] for line in table if set(line) != {"-"}]
    assert all(end == ends[0] for end in ends)


@pytest.mark.slow("draws two reports with their curves")
def test_terms_are_drawn_when_the_loss_has_more_than_one(tmp_path):
    run = fake_runs.write_fold(tmp_path, fake_runs.result(num_folds=1))
    assert "Terms of the loss" not in Path(write_report(Folder(run), RunConfig).html).read_text()
    records = [{"kind": "train", "step": s, "loss": 3, "terms": {"global": 1 / s, "local": 2 / s}} for s in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    text = Path(write_report(Folder(run), RunConfig).html).read_text()
    assert 'aria-label="Terms of the loss"' in text and ">global</text>" in text and ">local</text>" in text


def test_rows_of_a_complete_crossval_are_in_order(crossval):
    kinds = [row.kind for row in table_rows(summarise(Folder(crossval[0]), RunConfig))]
    assert kinds == ["fold"] * 5 + ["mean", "std", "pooled", "theirs"]


def test_short_names_are_distinct_prefixes():
    assert short_names(BASIC7) == ["hap", "sad", "neu", "ang", "sur", "dis", "fea"]
    assert short_names(MAFW11)[5:] == ["disg", "fea", "con", "anx", "hel", "disa"]
    assert short_names(["fear", "fearful"]) == ["fear", "fearf"]


def test_long_curves_are_averaged_in_runs():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    found = thinned(points, limit=100)
    assert len(found) == 100 and found[0] == (4.5, 0.5)
    assert thinned(points[:100], limit=100) == points[:100]


@pytest.mark.parametrize("heights", [{"a": 0.5, "b": 0.5, "c": 0.51}, {"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.99}])
def test_line_names_keep_their_order_and_their_distance(heights):
    placed = apart(heights, gap=0.1)
    assert list(placed) == sorted(heights, key=lambda name: heights[name])
    values = list(placed.values())
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(values))
    assert all(0 <= value <= 1 for value in values)


def test_means_over_ranks_stand_beside_the_pooled_scores_and_replace_none(tmp_path):
    plain = fake_runs.write_crossval(tmp_path / "plain", curves=False)
    run = fake_runs.write_crossval(tmp_path / "ranks", curves=False)
    uars = (0.6, 0.62, 0.64, 0.66, 0.68)
    for fold, uar in enumerate(uars, 1):
        found = RankMean(ranks=2, uar=uar, recall=(uar,) * 7)
        fake_runs.write_fold(run / f"fold_{fold}", fake_runs.result(fold=fold, rank_mean=found), curves=False)
    rows, others = (table_rows(summarise(Folder(path), RunConfig)) for path in (run, plain))
    (row,) = [row for row in rows if row.kind == "ranks"]
    assert [(r.kind, r.cells) for r in rows if r is not row] == [(r.kind, r.cells) for r in others]
    war = next(r for r in rows if r.kind == "mean").cells[-1]
    assert row.label == "rank mean of 2: mean" and row.cells == ("64.00",) * 8 + (war,)


def test_the_split_protocol_and_its_overlap_are_facts_of_a_report(tmp_path):
    overlap = Overlap(tests=990, twice=33, never=24, subjects=700, pictures=0)
    for fold in (1, 2):
        found = fake_runs.result(fold=fold, num_folds=2, split="positional", overlap=overlap)
        fake_runs.write_fold(tmp_path / f"fold_{fold}", found, curves=False)
    report = summarise(Folder(tmp_path), RunConfig)
    known = dict(facts(report))
    assert known["split protocol"] == "positional"
    assert known["training and test"] == (
        "990 test clips in all folds; 33 clips tested more than once, 24 never; in the training of the same fold: "
        "the person of 700, the very picture of 0"
    )
    assert "- split protocol: positional" in markdown(report) and tables.plain(report)["overlap"]["twice"] == 33


def test_folds_of_two_split_protocols_are_not_averaged(tmp_path):
    for fold, split in ((1, "positional"), (2, "subjects")):
        found = fake_runs.result(fold=fold, num_folds=2, split=split)
        fake_runs.write_fold(tmp_path / f"fold_{fold}", found, curves=False)
    with pytest.raises(CheckpointError, match=r"one split protocol .* got positional \(fold_1\); subjects \(fold_2\)"):
        summarise(Folder(tmp_path), RunConfig)


def test_results_from_before_the_split_was_recorded_go_with_those_of_the_same_configuration(tmp_path):
    for fold, split in ((1, ""), (2, "published")):
        found = fake_runs.result(fold=fold, num_folds=2, split=split)
        fake_runs.write_fold(tmp_path / f"fold_{fold}", found, curves=False)
    old = tmp_path / "fold_1/results/test.json"
    values = json.loads(old.read_text())
    del values["split"], values["overlap"]
    old.write_text(json.dumps(values))
    assert len(summarise(Folder(tmp_path), RunConfig).folds) == 2
