"""The shipped configurations: they load, say how to run them and what to expect, and are the rows of the paper."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from dfer import __main__ as cli
from dfer import config
from dfer.jobs.config import RunConfig
from dfer.models.config import LinearProbeConfig, TowersConfig
from dfer.training.config import SgdConfig, StepScheduleConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in ROOT.glob("configs/**/*.yaml") if "clusters" not in path.parts)
SETS = [path for path in CONFIGS if path.parent.name in ("dfew", "ferv39k", "mafw")]
README = (ROOT / "configs" / "README.md").read_text()
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


def name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@cache
def load(path: Path) -> RunConfig:
    return config.load(path, RunConfig)


METHODS = {path: load(path).model.name for path in SETS}
PAPER = [path for path, method in METHODS.items() if method == "dfer_clip"]
PROBES = [path for path, method in METHODS.items() if method == "linear_probe"]


def head(path: Path) -> dict[str, str]:
    """`# key: text` lines of the comment a file opens with."""
    lines = re.match(r"(#.*\n)+", path.read_text())
    assert lines, f"{name(path)}: opens with a comment"
    return dict(re.findall(r"^# (run|frames|published|ours): +(.+)$", lines[0], re.MULTILINE))


every = pytest.mark.parametrize("path", CONFIGS, ids=name)
paper = pytest.mark.parametrize("path", PAPER, ids=name)


def test_there_are_configurations() -> None:
    assert len(PAPER) == 3 * len(ROWS) and ROOT / "configs/demo.yaml" in CONFIGS


@every
def test_it_loads_and_reads_back_from_its_resolved_form(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config.to_yaml(load(path)))
    assert load(tmp_path / "config.yaml") == load(path)


@every
def test_its_head_says_how_to_run_it(path: Path) -> None:
    commands = [part for part in re.split(r"\s{2,}|[()]|or: ", head(path)["run"]) if part.startswith("dfer ")]
    assert commands
    for command in commands:
        args = cli.parse(shlex.split(command)[1:])
        assert args.config == Path("configs") / name(path)
        assert config.load(path, RunConfig, args.overrides).data.shards


@every
def test_its_head_says_what_to_expect(path: Path) -> None:
    said, published = head(path), load(path).published
    if published is None:
        assert said["published"].startswith("none")
    else:
        assert said["published"].startswith(f"UAR {published.uar:.2f}, WAR {published.war:.2f} (")
        assert "select: best_on_test" in said["published"] and published.selection == "best_on_test"
    assert said["ours"] == "pending" or re.search(r"\d+\.\d", said["ours"])


@every
def test_the_list_of_configurations_has_it_with_its_numbers(path: Path) -> None:
    rows = [line for line in README.splitlines() if line.startswith(f"| [{name(path)}]({name(path)}) |")]
    published = load(path).published
    assert len(rows) == 1
    assert rows[0].split("|")[3].strip() == (f"{published.uar:.2f} / {published.war:.2f}" if published else "none")


def test_the_list_names_every_file_and_no_other() -> None:
    assert sorted(re.findall(r"\]\(([^)]+\.yaml)\)", README)) == [name(path) for path in CONFIGS]


def test_no_two_configurations_share_a_run_folder() -> None:
    folders = [load(path).run for path in CONFIGS]
    assert len(set(folders)) == len(folders)
    assert all(load(path).run == f"runs/{name(path).removesuffix('.yaml')}" for path in SETS)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_of_the_paper_is_one_configuration(row: tuple[int, int, str], dataset: str) -> None:
    found = []
    for path in PAPER:
        run = load(path)
        what = (run.model.temporal.depth, run.model.num_contexts, run.model.text)
        if path.parent.name == dataset and what == row:
            found.append((run.published.uar, run.published.war))  # type: ignore[union-attr]
    assert found == [ROWS[row][DATASETS.index(dataset)]]


@paper
def test_the_recipe_is_the_paper_s(path: Path) -> None:
    run = load(path)
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


@paper
def test_the_model_is_the_paper_s(path: Path) -> None:
    model = load(path).model
    assert (model.towers.arch, model.towers.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert (model.temperature, model.context_position, model.shared_contexts) == (0.01, "end", False)
    assert (model.temporal.heads, model.temporal.head_dim, model.temporal.mlp_dim) == (8, 64, 1024)
    assert model.train_image


@paper
def test_the_head_says_where_frames_are_treated_otherwise_than_in_the_released_code(path: Path) -> None:
    """DFEW's faces are square; those of the others need not be."""
    side = load(path).data.size
    square = f"{side} x {side}"
    said = f"those that are not square are stretched to {square} before the random crop, unlike the released code"
    assert head(path).get("frames") == (None if path.parent.name == "dfew" else said)


@every
def test_its_default_shard_folder_is_kept_out_of_the_repository(path: Path) -> None:
    """The data sets may not be passed on."""
    top = Path(load(path).data.shards).parts[0]
    assert f"/{top}/" in (ROOT / ".gitignore").read_text().splitlines()


@paper
def test_the_data_are_shown_as_in_the_paper(path: Path) -> None:
    data, dataset = load(path).data, path.parent.name
    assert (data.frames, data.size) == (16, 224)
    assert data.classes == ("mafw11" if dataset == "mafw" else "basic7")
    assert data.shards == f"data/{dataset}"
    assert (data.augment.crop, data.augment.min_area, data.augment.flip) == (True, 0.08, 0.5)
    assert data.augment.brightness == (0.5 if dataset == "dfew" else 0.0)
    assert data.augment.rotation == (4.0 if dataset == "ferv39k" else 0.0)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_linear_probe_reads_features_with_dfer_clip_s_schedule(dataset: str) -> None:
    (path,) = [path for path in PROBES if path.parent.name == dataset]
    run = load(path)
    assert isinstance(run.model, LinearProbeConfig) and run.model.towers == TowersConfig(pretrained="openai")
    assert run.published and (run.published.uar, run.published.war) == PROBE_ROW[DATASETS.index(dataset)]
    assert run.data.features and run.data.shards == f"data/{dataset}"
    assert (run.batch, run.epochs, run.schedule) == (48, 50, StepScheduleConfig(milestones=(30, 40), gamma=0.1))
    assert {key: group.lr for key, group in run.optim.groups.items()} == {"head": 1e-2}
