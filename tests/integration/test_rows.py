"""Every row of the published tables: its dry run on generated faces, with a tiny model, beside numbers typed from the
papers and releases; and every method joined with every set.

`make test` runs one row of each method on clips and on stills; the long form runs all.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfer.config import ConfigProblem
from dfer.config_files import names
from dfer.emotions import emotions_of, label_set
from dfer.jobs.config import load_run
from dfer.jobs.rows import ROWS, STILLS, Row
from dfer.models.build import build
from shards import __main__ as builder
from shards.synthetic import synth
from tests.integration.commands import Capture, here

pytestmark = pytest.mark.integration

Rates = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """Clips of a step, epochs and the rates of the groups; no rates for what is not trained."""

    batch: int
    epochs: int
    rates: Rates


@dataclass(frozen=True)
class Tree:
    """A generated raw tree. clips: to ask for; train: of them, in the training of fold 1. classes: in order."""

    layout: str
    clips: int
    train: int
    classes: str


# Zhao & Patras, BMVC 2023, section 4.2. Its baselines without a published recipe get the same, new parts 1e-2.
IMAGE, TEMPORAL, PROMPTS, HEAD = {"image": 1e-5}, {"temporal": 1e-2}, {"prompts": 1e-3}, {"head": 1e-2}
META = {"meta": 1e-3}
# Li et al., ACM MM 2024: CLIP's own weights at a tenth of the others' rate.
SLOW, FAST = {"image": 2e-6}, {"messages": 2e-5, "prompts": 2e-5}
RECIPES = {
    **dict.fromkeys(
        ("dfer_clip", "dfer_clip_depth2", "dfer_clip_depth3", "class_name_temporal"),
        Recipe(48, 50, IMAGE | TEMPORAL | PROMPTS),
    ),
    **dict.fromkeys(
        (*(f"dfer_clip_no_temporal_{contexts}ctx" for contexts in (4, 8, 16)), "class_name_no_temporal"),
        Recipe(48, 50, IMAGE | PROMPTS),
    ),
    **dict.fromkeys(("photo_no_temporal", "expression_no_temporal"), Recipe(48, 50, IMAGE)),
    "linear_probe": Recipe(48, 50, HEAD),
    "fine_tune": Recipe(48, 50, IMAGE | HEAD),
    "fine_tune_temporal": Recipe(48, 50, IMAGE | TEMPORAL | HEAD),
    "coop": Recipe(48, 50, PROMPTS),
    "cocoop": Recipe(48, 50, PROMPTS | META),
    # KaiyangZhou/CoOp: vit_b32_ep50.yaml, vit_b16_c4_ep10_batch1_ctxv1.yaml.
    "coop_own": Recipe(32, 50, {"prompts": 2e-3}),
    "cocoop_own": Recipe(1, 10, {"prompts": 2e-3, "meta": 2e-3}),
    "contrastive": Recipe(48, 50, IMAGE | {"text": 1e-5, "scale": 1e-5} | TEMPORAL),
    "dk_clip": Recipe(32, 50, SLOW | FAST | {"semantic": 2e-6, "integration": 2e-5}),
    "dk_clip_released": Recipe(32, 50, SLOW | FAST),
    # Saadi et al., github Ibtissam-SAADI/CLIVP-FER.
    **dict.fromkeys(("clivp_fer", "clivp_fer_mode0", "clivp_fer_true_label"), Recipe(64, 40, {"head": 3e-3})),
    # github WuJie1010/Facial-Expression-Recognition.Pytorch: 250 epochs on FER2013, 60 on CK+.
    **dict.fromkeys(("vgg19", "resnet18"), Recipe(128, 250, {"network": 1e-2})),
    "demo": Recipe(16, 30, {"image": 1e-3, "temporal": 1e-3, "prompts": 2e-2}),
    "demo_no_temporal": Recipe(16, 30, {"image": 1e-3, "prompts": 2e-2}),
}
CK48_EPOCHS = 60
UNTRAINED = Recipe(48, 1, {})

SEVEN = "happiness sadness neutral anger surprise disgust fear"
EIGHT, SIX = f"{SEVEN} contempt", SEVEN.replace(" neutral", "")
TREES = {
    "dfew": Tree("dfew", 70, 56, SEVEN),
    "ferv39k": Tree("ferv39k", 70, 56, SEVEN),
    "mafw": Tree("mafw", 66, 52, f"{EIGHT} anxiety helplessness disappointment"),
    "afew": Tree("afew", 90, 60, SEVEN),
    "raf_db": Tree("raf_db", 90, 72, SEVEN),
    "affectnet7": Tree("affectnet", 80, 58, SEVEN),
    "affectnet8": Tree("affectnet", 80, 64, EIGHT),
    "fer2013": Tree("fer2013", 210, 168, SEVEN),
    "ferplus": Tree("ferplus", 96, 77, EIGHT),
    "ckplus": Tree("ckplus", 30, 72, f"{SIX} contempt"),
    "ckplus48": Tree("ckplus48", 327, 870, f"{SIX} contempt"),
    "kmu_fed": Tree("kmu_fed", 16, 100, SIX),
}
POSITIONAL = {("clivp_fer_true_label", "kmu_fed"): 144, ("vgg19", "ckplus48"): 882, ("resnet18", "ckplus48"): 882}
"""Training stills of fold 1 where the folds are blocks of positions: 160 without a tenth, CK+'s 981 without 99."""
SHORT = ("dfew", "mafw", "fer2013", "kmu_fed", "raf_db")
"""Trees of the short form."""
Place = Callable[[str], Path]


def parts(row: Row) -> tuple[str, str]:
    """Names of the method and of the tree of a row."""
    words = [name.split("/")[-1] for name in row.configs]
    if len(words) == 2:
        return words[0], words[1]
    method = words[0].removesuffix("_subjects").removesuffix("_public")
    return method, "dfew" if words[0].startswith("demo") else row.configs[0].split("/")[0]


def in_short_form() -> Iterator[Row]:
    """The first row of each method on clips, and on stills, of which the short form has the tree."""
    seen = set()
    for row in ROWS:
        method, data = parts(row)
        if data in SHORT and (kind := (method, data in STILLS)) not in seen:
            seen.add(kind)
            yield row


FEW = [*in_short_form()]


def tiny(method: str, data: str, shards: object) -> list[str]:
    """Overrides with which a row builds in a moment: another tower or width, and the frames that it takes."""
    found = [f"data.shards={shards}", "data.workers=0"]
    if method in ("vgg19", "resnet18"):
        return [*found, "model.width=4"]
    if method.startswith("demo"):
        return found
    found += ["model.towers.arch=tiny-vit-64", "model.towers.pretrained=null", "data.size=64"]
    found += ["model.head=null"] if method.startswith("exp_clip") else []
    return [*found, "data.features=null"] if method == "linear_probe" else found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The shards of a set's generated tree, made when first asked for."""
    home = tmp_path_factory.mktemp("rows")

    def made(data: str) -> Path:
        of, out = TREES[data], home / f"{TREES[data].layout}_shards"
        if not out.exists():
            size = 48 if of.layout in ("fer2013", "ckplus48") else 32
            synth(of.layout, home / of.layout, clips=of.clips, seed=3, size=size, progress=False)
            words = ["build", of.layout, str(home / of.layout), str(out), "--jobs", "1", "--no-progress"]
            assert builder.main(words) == 0
        return out

    return made


@pytest.mark.slow("the first to ask for a tree draws it")
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[] if row in FEW else [pytest.mark.long], id=" ".join(row.configs)) for row in ROWS],
)
def test_a_dry_run_shows_classes_groups_rates_and_steps(row: Row, tree: Place, tmp_path: Path, capsys: Capture) -> None:
    method, data = parts(row)
    want, of = RECIPES.get(method, UNTRAINED), TREES[data]
    done = here(capsys, "train", *row.configs, f"run={tmp_path}", *tiny(method, data, tree(data)), "--dry-run")
    assert done.returncode == 0, done.stderr
    train = re.search(r"^ +train: (\d+) clips \((.+?)\)", done.stdout, re.MULTILINE)
    clips = POSITIONAL.get((method, data), of.train) if len(row.configs) == 2 else of.train
    assert train and int(train[1]) == clips
    assert re.findall(r"(\w+) \d+", train[2]) == of.classes.split()
    groups = re.findall(r"^ *(\w+): ([\d,]+) parameters, lr (\S+)$", done.stdout, re.MULTILINE)
    assert {name: float(rate) for name, _, rate in groups} == want.rates and all(count != "0" for _, count, _ in groups)
    epochs = CK48_EPOCHS if data == "ckplus48" and method in ("vgg19", "resnet18") else want.epochs
    steps = clips // want.batch
    if want is UNTRAINED:
        assert (
            method.startswith(("zero_shot", "exp_clip"))
            and "trains nothing" in done.stdout
            and " steps: " not in done.stdout
        )
    else:
        assert f"steps: {steps} an epoch, {steps * epochs} in all" in done.stdout


def test_the_rows_of_the_short_form_are_all_methods_on_both_kinds_of_sets() -> None:
    kinds = {(parts(row)[0], parts(row)[1] in STILLS and parts(row)[1] != "afew") for row in ROWS}
    short = {(parts(row)[0], parts(row)[1] in STILLS) for row in FEW}
    assert short == kinds and {parts(row)[1] for row in FEW} == {*SHORT}


METHODS, SETS = (
    sorted(name.split("/")[1] for name in names() if name.startswith(kind)) for kind in ("methods/", "sets/")
)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_joins_with_every_set(method: str) -> None:
    """All sets are there, stills too; the frames of a clip are those of the set, where the method does not need one.
    DK-CLIP compares the frames of a snippet, which stills do not have."""
    for data in SETS:
        configs = [f"methods/{method}", f"sets/{data}"]
        if method.startswith("dk_clip") and data in STILLS and data != "afew":
            with pytest.raises(ConfigProblem, match=r"data.frames: expected a multiple of model.snippet=4, got 1"):
                load_run(configs)
            continue
        run = load_run(configs)
        one = data not in ("dfew", "ferv39k", "mafw", "afew") or method.startswith(("clivp_fer", "vgg19", "resnet18"))
        assert run.data.frames == (1 if one else 16), data
        assert run.data.shards == f"data/{'affectnet' if data.startswith('affectnet') else data}"
        assert run.run == f"runs/{data}/{method}"


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_method_builds_for_every_number_of_classes_or_says_why_not(method: str) -> None:
    """CLIVP-FER has captions of seven classes."""
    for data in ("dfew", "mafw", "ferplus", "affectnet7", "ckplus48", "kmu_fed"):
        configs, changes = [f"methods/{method}", f"sets/{data}"], tiny(method, data, "x")
        if method.startswith("dk_clip") and data in STILLS:
            continue  # refused above
        run = load_run(configs, changes)
        classes = run.data.classes or ()
        emotions = label_set(classes) if isinstance(classes, str) else emotions_of(classes)
        refused = ""
        if method.startswith("clivp_fer") and "contempt" in emotions.names:
            refused = "text=clivp_fer: expected a text for every class, got none for contempt"
        with pytest.raises(ConfigProblem, match=refused) if refused else nullcontext():
            model = build(run.model, emotions, num_frames=run.data.frames, seed=1)
            assert sum(p.numel() for p in model.parameters()) > 0
