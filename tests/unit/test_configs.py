"""The shipped configurations: they load, say how to run them and what to expect, and are the rows of the paper."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from dfer import __main__ as cli
from dfer import config
from dfer.config import ConfigProblem
from dfer.config_files import load as load_files
from dfer.config_files import names
from dfer.data.recipes import DferClipAugment
from dfer.jobs import rows
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.rows import SETS, Row
from dfer.models.config import DferClipConfig, LinearProbeConfig, TowersConfig
from dfer.training.config import SgdConfig, StepScheduleConfig

ROOT = Path(__file__).parents[2]
FILES = [name for name in names() if not name.startswith("clusters/")]
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

PROBE_ROW = ((45.46, 57.40), (32.47, 43.72), (30.74, 42.95))


@cache
def load(configs: tuple[str, ...]) -> RunConfig:
    return load_run(configs)


def dataset_of(row: Row) -> str:
    return next(name.removeprefix("sets/") for name in row.configs if name.startswith("sets/"))


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
    assert run.data.features and run.data.shards == f"data/{dataset}" and run.data.train_frames == "middle"
    assert run.data.augment == DferClipAugment(crop=False, flip=0.0)
    assert (run.batch, run.epochs, run.schedule) == (48, 50, StepScheduleConfig(milestones=(30, 40), gamma=0.1))
    assert {key: group.lr for key, group in run.optim.groups.items()} == {"head": 1e-2}


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
