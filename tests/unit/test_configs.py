"""The shipped configurations: they load, say how to run them and what to expect, and are the rows of the paper."""

import re
import shlex
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from dfer import __main__ as cli
from dfer import config
from dfer.config import ConfigProblem
from dfer.config_files import load as load_files
from dfer.config_files import names
from dfer.data.recipes import DferClipAugment
from dfer.emotions import BASIC7, MAFW11, label_set
from dfer.jobs import rows
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.rows import SETS, Row
from dfer.jobs.zeroshot_config import ZeroshotConfig
from dfer.models import head_file
from dfer.models.build import build
from dfer.models.config import (
    CoCoOpConfig,
    CoOpConfig,
    DferClipConfig,
    FineTuneConfig,
    LinearProbeConfig,
    ZeroShotConfig,
)
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.report import exp_clip
from dfer.training.config import AdamWConfig, SgdConfig, StepScheduleConfig
from dfer.training.optim import group_settings

ROOT = Path(__file__).parents[2]
FILES = [name for name in names() if not name.startswith(("clusters/", "jobs/", "exp_clip/"))]
PAPER = [row for row in rows.ROWS if row.published]
DATASETS = ("dfew", "ferv39k", "mafw")

# Zhao & Patras, BMVC 2023, tables 1 to 4: UAR / WAR in % on DFEW, FERV39k and MAFW, for
# (temporal depth, contexts, text). The numbers are typed from the paper, not taken from the files.
ROWS = {
    (1, 8, "class_descriptor"): ((59.61, 71.25), (41.27, 51.65), (39.89, 52.55)),
    (0, 4, "class_descriptor"): ((56.91, 69.01), (40.26, 50.96), (38.03, 50.62)),
    (0, 8, "class_descriptor"): ((57.39, 69.00), (40.64, 50.92), (38.51, 50.91)),
    (0, 16, "class_descriptor"): ((57.32, 68.96), (40.22, 50.64), (37.98, 50.40)),
    (2, 8, "class_descriptor"): ((58.87, 70.92), (40.41, 51.08), (39.13, 52.10)),
    (3, 8, "class_descriptor"): ((58.64, 70.80), (40.35, 50.98), (38.90, 51.86)),
    (0, 0, "photo"): ((56.21, 68.44), (39.44, 49.94), (37.91, 50.87)),
    (0, 0, "class_names_with_context"): ((56.16, 68.73), (39.28, 50.41), (37.71, 51.08)),
    (0, 8, "class_names"): ((57.37, 68.86), (40.42, 50.50), (38.01, 50.81)),
    (1, 8, "class_names"): ((58.28, 70.29), (40.60, 51.18), (39.64, 51.21)),
}
PROBE_ROW = ((45.46, 57.40), (32.47, 43.72), (30.74, 42.95))

# The other rows of the same tables, typed from the paper too. The prompt of its zero-shot row is not given.
BASELINES = {
    "fine_tune": ((55.70, 68.41), (39.64, 50.77), (37.53, 50.48)),
    "fine_tune_temporal": ((58.28, 70.27), (40.55, 51.22), (38.39, 50.92)),
    "zero_shot": ((23.34, 20.07), (20.99, 17.09), (18.42, 19.16)),
    "zero_shot_farl": ((23.14, 31.54), (21.67, 25.65), (14.18, 11.78)),
    "coop": ((44.98, 56.68), (31.72, 42.55), (30.79, 42.77)),
    "cocoop": ((46.80, 57.52), (32.91, 44.25), (30.81, 43.23)),
}
KINDS = {
    "zero_shot": "class_names",
    "zero_shot_expression": "class_names_with_context",
    "zero_shot_face": "face_with_expression",
    "zero_shot_ensemble_5": "ensemble_5",
    "zero_shot_ensemble_10": "ensemble_10",
}
"""Exp-CLIP's five prompt kinds."""


@cache
def load(configs: tuple[str, ...]) -> RunConfig:
    return load_run(configs)


def dataset_of(row: Row) -> str:
    return next((n.removeprefix("sets/") for n in row.configs if n.startswith("sets/")), row.configs[0].split("/")[0])


def head(name: str) -> dict[str, str]:
    """`# key: text` lines of the comment a file opens with."""
    lines = re.match(r"(#.*\n)+", (ROOT / "configs" / f"{name}.yaml").read_text())
    assert lines, f"{name}: opens with a comment"
    return dict(re.findall(r"^# (run|frames): +((?:.+\n#  )*.+)$", lines[0], re.MULTILINE))


every = pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: " ".join(row.configs))


def test_there_are_rows_and_every_file_is_in_one() -> None:
    assert len(PAPER) >= 3 * len(ROWS) and tuple(SETS) == DATASETS
    used = {name for row in rows.ROWS for name in (*row.configs, rows.own_file(row.configs)) if name}
    assert used == {*FILES} > {"demo", "methods/dfer_clip", "sets/mafw", "dfew/linear_probe"}


@every
def test_it_loads_and_reads_back_from_its_resolved_form(row: Row) -> None:
    resolved = config.to_yaml(load(row.configs)).encode()
    assert config.load_text(resolved, RunConfig, where="config.yaml") == load(row.configs)


@pytest.mark.parametrize("name", FILES)
def test_the_head_of_a_file_says_how_to_run_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [part for part in re.split(r"\s{2,}|[()]|or: ", head(name)["run"]) if part.startswith("dfer ")]
    assert commands
    for command in commands:
        args = cli.parse(shlex.split(command)[1:])
        words = [text.removeprefix("configs/").removesuffix(".yaml") for text in args.configs]
        assert name in (*words, rows.own_file(words))
        assert load_run(args.configs, args.overrides).data.shards


def test_the_list_of_configurations_is_what_the_table_gives() -> None:
    """`make configs` writes it."""
    assert (ROOT / "configs" / "README.md").read_text(encoding="utf-8") == rows.page()


def test_a_line_of_the_list() -> None:
    made = rows.of_paper({"dfer_clip": ((1.5, 2), (3, 4), (50, 61.234))}, "a paper")[2]
    links = "[methods/dfer_clip](methods/dfer_clip.yaml) [sets/mafw](sets/mafw.yaml)"
    assert made.line() == f"| {links} | MAFW, five folds | 50.00 / 61.23 | pending | | | |"


def test_a_file_of_its_own_stands_for_a_join_that_differs() -> None:
    """The set's augmentation is not the linear probe's: without the file the join would be refused."""
    run = load(("methods/linear_probe", "sets/dfew"))
    assert run == load(("sets/dfew", "methods/linear_probe")) == load(("dfew/linear_probe",))
    assert (run.data.augment.brightness, run.run) == (0.0, "runs/dfew/linear_probe")
    assert rows.own_file(("methods/linear_probe", "sets/mafw")) is rows.own_file(("demo", "sets/dfew")) is None
    with pytest.raises(ConfigProblem, match=r"data.augment.brightness: expected one value, got 0.0 from methods/lin"):
        load_files(["methods/linear_probe", "sets/dfew"], RunConfig, ["run=x"])
    line = next(row for row in rows.ROWS if row.configs == ("methods/linear_probe", "sets/dfew")).line()
    assert "[sets/dfew](sets/dfew.yaml) ([differs](dfew/linear_probe.yaml)) | DFEW" in line


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_linear_probe_reads_features_with_dfer_clip_s_schedule(dataset: str) -> None:
    run = load(("methods/linear_probe", f"sets/{dataset}"))
    assert isinstance(run.model, LinearProbeConfig) and run.model.towers == TowersConfig(pretrained="openai")
    assert run.published and (run.published.uar, run.published.war) == PROBE_ROW[DATASETS.index(dataset)]
    assert run.model.clip_normalisation and "its normalisation of frames is not published" in run.published.note
    assert run.data.features and run.data.shards == f"data/{dataset}" and run.data.train_frames == "middle"
    assert run.data.augment == DferClipAugment(crop=False, flip=0.0)
    assert (run.batch, run.epochs, run.schedule) == (48, 50, StepScheduleConfig(milestones=(30, 40), gamma=0.1))
    assert {key: group.lr for key, group in run.optim.groups.items()} == {"head": 1e-2}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_has_the_paper_s_numbers(method: str, dataset: str) -> None:
    run = load((f"methods/{method}", f"sets/{dataset}"))
    selection = "none" if method.startswith("zero_shot") else "best_on_test"
    assert run.published is not None and run.published.selection == selection
    assert (run.published.uar, run.published.war) == BASELINES[method][DATASETS.index(dataset)]
    arch = "ViT-B-16-quickgelu" if method == "zero_shot_farl" else "ViT-B-32-quickgelu"
    assert run.model.towers.arch == arch and (run.data.frames, run.data.size) == (16, 224)


@pytest.mark.parametrize("method", KINDS)
def test_zero_shot_has_a_row_for_every_kind_of_prompts(method: str) -> None:
    run = load((f"methods/{method}", "sets/dfew"))
    assert isinstance(run.model, ZeroShotConfig) and run.model.text == KINDS[method]
    assert not run.model.clip_normalisation and run.model.head is None and run.optim.groups == {}
    assert run.published is not None and (run.published.uar, run.published.war) == BASELINES["zero_shot"][0]
    assert run.published.note == "its prompt is not published"


# Exp-CLIP's logs for kind 3, typed from the files of its release: UAR / WAR on RAF-DB, AffectNet-8, DFEW and MAFW.
EXP_CLIP = {
    "exp_clip_b32": ((38.68, 45.05), (27.41, 27.41), (25.11, 29.41), (17.87, 21.05)),
    "exp_clip_b16": ((48.42, 54.11), (33.56, 33.56), (25.70, 31.17), (18.86, 23.75)),
    "exp_clip_l14": ((57.93, 65.94), (38.41, 38.41), (40.73, 47.09), (24.19, 27.31)),
}


@pytest.mark.parametrize("method", EXP_CLIP)
def test_exp_clip_s_heads_have_the_numbers_of_the_same_prompt_kind(method: str) -> None:
    for dataset, scores in zip(("raf_db", "affectnet8", "dfew", "mafw"), EXP_CLIP[method], strict=True):
        run = load((f"methods/{method}", f"sets/{dataset}"))
        assert isinstance(run.model, ZeroShotConfig) and run.model.text == "face_with_expression"
        assert run.model.head and run.model.head.endswith(f"ExpCLIP_{method[-3:].upper()}_model.pth")
        assert run.model.towers.arch == head_file.ARCHS[method[-3:].upper()] and run.data.sampling == "exp_clip"
        assert run.published is not None and (run.published.uar, run.published.war) == scores
    dfew = load(("methods/exp_clip_l14", "sets/dfew")).published
    assert dfew is not None and "README table: 40.16 / 47.09, of no single prompt kind" in dfew.note
    plain = load(("methods/zero_shot_face", "sets/raf_db")).published
    assert dfew.selection == "none" and plain is not None and plain.selection == "none"
    assert (plain.uar, plain.war) == (34.97, 30.05)


def test_every_log_row_of_exp_clip_is_on_the_page_once() -> None:
    """3 heads, 5 kinds, 8 sets: kind 3 in rows of their own, the others in the suite's table."""
    _, _, table = rows.page().partition("## Exp-CLIP's other prompt kinds")
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    found = {(head, kind[0]): cells for head, kind, *cells in lines}
    assert sorted(found) == sorted((head, kind) for head in ("B16", "B32", "L14") for kind in "1245")
    assert all(len(cells) == 8 for cells in found.values()) and found["L14", "5"][7] == "39.47 / 40.42"
    assert sum(row.method in rows.EXP_CLIP for row in PAPER) == 3 * 8


def test_what_is_not_alike_stands_beside_the_numbers() -> None:
    for row in PAPER:
        if row.dataset == "ferplus":
            assert "its rule from votes to labels is not known" in row.note, row.method
        if row.dataset.startswith("affectnet") and row.method in rows.EXP_CLIP:
            assert "its list of test pictures is not released" in row.note, row.method
    leaking = next(row for row in PAPER if row.dataset == "kmu_fed")
    assert leaking.note == "of 1,104 face crops; ours are of 1,100 whole pictures"


@pytest.mark.parametrize("name", ["exp_clip/zeroshot", "exp_clip/zeroshot_all"])
def test_the_zero_shot_suite_has_the_paper_s_sets_kinds_and_heads(name: str) -> None:
    found = load_files([name], ZeroshotConfig)
    assert tuple(found.sets) == exp_clip.SETS and found.texts == tuple(KINDS.values()) and found.frames == 16
    for own, run in ((found.sets[each], load(("methods/zero_shot", f"sets/{each}"))) for each in exp_clip.SETS):
        assert (own.shards, own.classes, own.protocol) == (run.data.shards, run.data.classes, run.data.protocol)
    sizes = [model.split("_")[-1].upper() for model in found.models]
    for model, size in zip(found.models.values(), sizes, strict=True):
        assert model.towers == TowersConfig(arch=head_file.ARCHS[size], pretrained="openai")
        assert model.head in (None, f"data/ExpCLIP_{size}_model.pth") and not model.clip_normalisation
    assert sum(model.head is None for model in found.models.values()) * 2 == len(found.models)
    assert f"dfer zeroshot {name}" in (ROOT / "configs" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("method", ["fine_tune", "fine_tune_temporal", "coop", "cocoop"])
def test_a_baseline_has_dfer_clip_s_recipe(method: str) -> None:
    """The paper gives none; so that rows differ in one thing."""
    run, theirs = load((f"methods/{method}", "sets/dfew")), load(("methods/dfer_clip", "sets/dfew"))
    assert (run.data, run.batch, run.epochs, run.schedule) == (theirs.data, 48, 50, theirs.schedule)
    assert isinstance(run.optim, SgdConfig) and (run.optim.momentum, run.optim.weight_decay) == (0.9, 1e-4)
    rates = {"image": 1e-5, "head": 1e-2} if isinstance(run.model, FineTuneConfig) else {"prompts": 1e-3}
    rates |= {"meta": 1e-3} if method == "cocoop" else {}
    rates |= {"temporal": 1e-2} if method == "fine_tune_temporal" else {}
    assert {key: group.lr for key, group in run.optim.groups.items()} == rates
    if isinstance(run.model, CoOpConfig | CoCoOpConfig):
        assert (run.model.num_contexts, run.model.text, run.model.clip_normalisation) == (8, "class_names", False)


def test_coop_s_own_recipe_is_its_code_s() -> None:
    """KaiyangZhou/CoOp, configs/trainers: CoOp/vit_b32_ep50.yaml, CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml."""
    coop, cocoop = (load((f"methods/{method}_own", "sets/mafw")) for method in ("coop", "cocoop"))
    assert (coop.batch, coop.epochs, cocoop.batch, cocoop.epochs) == (32, 50, 1, 10)
    assert isinstance(coop.model, CoOpConfig) and coop.model.num_contexts == 16 and coop.model.shared_contexts
    assert isinstance(cocoop.model, CoCoOpConfig) and cocoop.model.context_words == "a photo of a"
    for run in (coop, cocoop):
        assert run.model.clip_normalisation and run.published is None  # type: ignore[union-attr]
        assert {group.lr for group in run.optim.groups.values()} == {2e-3} and run.optim.weight_decay == 5e-4


# The last epoch of DK-CLIP's logs: UAR (rank mean) / WAR, typed from the spec of its release.
DK_CLIP_LAST = {"dfew": "63.85 / 74.61", "ferv39k": "42.19 / 50.22", "mafw": "39.82 / 52.13"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_notes_stand_beside_numbers_that_need_them(dataset: str) -> None:
    notes = {row.method: row.note for row in PAPER if row.dataset == dataset}
    said = f"UAR and recalls are means over two ranks; best test epoch, the last one has {DK_CLIP_LAST[dataset]}"
    assert notes["dk_clip"] == said and notes["dfer_clip"] == notes["dfer_clip_depth2"] == ""
    for row in PAPER:
        run = load(row.configs)
        if row.dataset == dataset and isinstance(run.model, DferClipConfig):
            averaged = run.model.temporal.depth == 0
            assert row.note == ("cannot be run from the release; frames averaged" if averaged else "")
        assert row.note in row.line() and run.published == row.published


SOURCES = {
    "DFER-CLIP, arXiv": "arXiv 2308.13382",
    "DK-CLIP": "Li et al., ACM MM 2024",
    "CLIVP-FER": "Saadi et al., CLIVP-FER",
    "github WuJie1010": "github WuJie1010/Facial-Expression-Recognition.Pytorch",
    "log of the release, github zengqunzhao/Exp-CLIP": "github zengqunzhao/Exp-CLIP",
    "README table of the release, github zengqunzhao/Exp-CLIP": "github zengqunzhao/Exp-CLIP",
}
"""How sources begin, and what the page calls them."""


def test_the_list_names_the_source_of_every_number_that_it_quotes() -> None:
    said = " ".join(rows.page().partition("**The numbers.**")[2].partition("| config")[0].split())
    found = {start for row in PAPER for start in SOURCES if row.published and row.published.source.startswith(start)}
    assert found == {*SOURCES} and all(words in said for words in SOURCES.values())
    assert all(row.published.source.startswith((*SOURCES,)) for row in PAPER if row.published)


def test_no_two_rows_share_a_run_folder() -> None:
    folders = [load(row.configs).run for row in rows.ROWS]
    assert len(set(folders)) == len(folders)
    assert all(load(row.configs).run.startswith(f"runs/{dataset_of(row)}/") for row in PAPER)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("what", ROWS, ids=str)
def test_every_row_of_the_paper_is_one_configuration(what: tuple[int, int, str], dataset: str) -> None:
    found = []
    for row in PAPER:
        run = load(row.configs)
        if dataset_of(row) != dataset or not isinstance(run.model, DferClipConfig):
            continue
        if (run.model.temporal.depth, run.model.num_contexts, run.model.text) == what:
            assert run.published is not None and run.published.selection == "best_on_test"
            found.append((run.published.uar, run.published.war))
    assert found == [ROWS[what][DATASETS.index(dataset)]]


dfer_clip = pytest.mark.parametrize(
    "row",
    [row for row in PAPER if isinstance(load(row.configs).model, DferClipConfig)],
    ids=lambda row: " ".join(row.configs),
)


@dfer_clip
def test_the_recipe_is_the_paper_s(row: Row) -> None:
    run = load(row.configs)
    assert (run.batch, run.epochs, run.seed) == (48, 50, 1)
    assert run.schedule == StepScheduleConfig(milestones=(30, 40), gamma=0.1)
    assert isinstance(run.optim, SgdConfig)
    assert (run.optim.momentum, run.optim.weight_decay) == (0.9, 1e-4)
    rates = {"image": 1e-5}
    rates |= {"temporal": 1e-2} if run.model.temporal.depth else {}
    rates |= {"prompts": 1e-3} if run.model.num_contexts else {}
    assert {key: group.lr for key, group in run.optim.groups.items()} == rates
    assert all(group.weight_decay is None for group in run.optim.groups.values())
    assert (run.engine.precision, run.engine.clip_norm) == ("fp32", None)


@dfer_clip
def test_the_model_is_the_paper_s(row: Row) -> None:
    model = load(row.configs).model
    assert (model.towers.arch, model.towers.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert (model.temperature, model.context_position, model.shared_contexts) == (0.01, "end", False)
    assert (model.temporal.heads, model.temporal.head_dim, model.temporal.mlp_dim) == (8, 64, 1024)
    assert model.train_image


@every
def test_its_default_shard_folder_is_kept_out_of_the_repository(row: Row) -> None:
    """The data sets may not be passed on."""
    top = Path(load(row.configs).data.shards).parts[0]
    assert f"/{top}/" in (ROOT / ".gitignore").read_text().splitlines()


@dfer_clip
def test_the_data_are_shown_as_in_the_paper(row: Row) -> None:
    data, dataset = load(row.configs).data, dataset_of(row)
    assert (data.frames, data.size) == (16, 224)
    assert data.classes == ("mafw11" if dataset == "mafw" else "basic7")
    assert data.shards == f"data/{dataset}"
    assert (data.augment.crop, data.augment.min_area, data.augment.flip) == (True, 0.08, 0.5)
    assert data.augment.brightness == (0.5 if dataset == "dfew" else 0.0)
    assert data.augment.rotation == (4.0 if dataset == "ferv39k" else 0.0)


# --- DK-CLIP

# Li et al., ACM MM 2024: UAR / WAR in %, and the epochs in which its logs have all terms of the loss.
DK_CLIP = {
    "dfew": (64.95, 75.41, range(50)),
    "ferv39k": (41.84, 52.37, range(11, 50)),
    "mafw": (43.01, 56.56, range(11, 50)),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_dk_clip_trains_as_its_logs_have_it(dataset: str) -> None:
    run = load(("methods/dk_clip", f"sets/{dataset}"))
    uar, war, epochs = DK_CLIP[dataset]
    assert run.published and (run.published.uar, run.published.war) == (uar, war) and run.rank_mean == 2
    assert isinstance(run.model, DkClipConfig) and isinstance(run.optim, AdamWConfig)
    assert [epoch for epoch in range(run.epochs) if run.model.losses.all_terms(epoch)] == [*epochs]
    assert (run.batch, run.micro_batch, run.epochs, run.data.frames, run.model.snippet) == (32, 8, 50, 16, 4)
    assert (run.optim.betas, run.optim.weight_decay, run.optim.no_decay) == ((0.9, 0.98), 1e-3, True)
    rates = {name: group.lr for name, group in run.optim.groups.items()}
    slow, fast = dict.fromkeys(("image", "semantic"), 2e-6), dict.fromkeys(("messages", "integration", "prompts"), 2e-5)
    assert rates == {**slow, **fast} and (run.model.second_encoder, run.model.train) == ("clip", "all")
    assert run.model.towers == TowersConfig(arch="ViT-B-16-quickgelu", pretrained="openai")


@pytest.mark.parametrize("dataset", DATASETS)
def test_dk_clip_s_recalls_are_those_of_its_tables(dataset: str) -> None:
    """Against the tables of docs/methods/dk_clip.md, which have every fold. Their mean is the published UAR."""
    page = (ROOT / "docs/methods/dk_clip.md").read_text()
    if dataset == "ferv39k":
        folds = [page.partition("FERV39k, epoch 16: ")[2].partition(";")[0].split(", ")]
    else:
        table = page.partition({"dfew": "\nDFEW; recalls", "mafw": "\nMAFW:"}[dataset])[2].split("\n\n")[1]
        folds = [line.strip("| ").split(" | ")[1:] for line in table.splitlines() if line[2:3].isdigit()]
    published = load(("methods/dk_clip", f"sets/{dataset}")).published
    classes = MAFW11 if dataset == "mafw" else BASIC7
    assert published is not None and published.uar is not None and (*published.recall,) == classes
    for place, recall in enumerate(published.recall.values()):
        assert recall == pytest.approx(statistics.fmean(float(fold[place]) for fold in folds), abs=0.0051)
    assert statistics.fmean(published.recall.values()) == pytest.approx(published.uar, abs=0.0051)


@pytest.mark.parametrize("dataset", DATASETS)
def test_dk_clip_as_released_has_the_code_s_filter_and_schedule_and_no_published_numbers(dataset: str) -> None:
    run = load(("methods/dk_clip_released", f"sets/{dataset}"))
    assert isinstance(run.model, DkClipConfig) and run.published is None and run.optim.weight_decay == 1e-4
    assert [epoch for epoch in range(run.epochs) if run.model.losses.all_terms(epoch)] == [*range(14)]
    assert (run.model.second_encoder, run.model.train) == ("random", "released")


def test_dk_clip_s_frames_are_checked_with_the_configuration() -> None:
    """Before any job starts or a file of weights is looked for."""
    said = r"data.frames: expected a multiple of model.snippet=4, got 6\. Set data.frames=4, or model.snippet=2\."
    with pytest.raises(ConfigProblem, match=said):
        load_run(["methods/dk_clip", "sets/dfew"], ["data.frames=6", "model.towers.pretrained=nowhere.pt"])


@pytest.mark.parametrize("method", ["dk_clip", "dk_clip_released"])
def test_dk_clip_s_groups_are_those_of_the_recipe(method: str) -> None:
    run = load((f"methods/{method}", "sets/mafw"))
    small = replace(run.model, towers=TowersConfig(arch="tiny-vit-64"))
    model = build(small, label_set("mafw11"), num_frames=run.data.frames, seed=run.seed)
    settings = group_settings(run.optim, model)
    decays = {setting.name: setting.weight_decay for setting in settings}
    assert {name.split("/")[0] for name in decays} == set(run.optim.groups)
    spared = [name for setting in settings if not setting.weight_decay for name in setting.params]
    positions = ("towers.visual.positional_embedding", "semantic.positional_embedding", "integration.positions")
    trained = dict(model.named_parameters())
    assert set(spared) == {name for name, p in trained.items() if p.requires_grad and (p.ndim < 2 or name in positions)}
