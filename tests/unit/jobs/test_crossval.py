"""The parts of a cross-validation: folds, with one seed or several; which configuration each has; what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfer.config import ConfigProblem, to_yaml
from dfer.config_files import load
from dfer.errors import CheckpointError, DataError, UsageError
from dfer.jobs import crossval as job
from dfer.jobs.config import RunConfig
from dfer.jobs.parts import JobModule, Part, chosen, in_order, load_job, name_of, parts_in
from dfer.storage import Folder
from tests.unit.data.shardkit import Clip, write_shards

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


KNOWN_FOLDS = job.known_folds


@pytest.fixture(autouse=True)
def three_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "known_folds", lambda _: [1, 2, 3])


def demo(*overrides: str, run: object = "runs/x") -> RunConfig:
    return load([DEMO], RunConfig, [f"run={run}", *overrides])


def names(*overrides: str) -> list[str]:
    return [part.name for part in job.parts(demo(*overrides))]


def test_the_module_of_a_configuration_is_a_kind_of_job() -> None:
    module: JobModule = job  # type: ignore[assignment]
    assert load_job([DEMO], []) == (module, demo(f"run={load_job([DEMO], [])[1].run}"))
    assert name_of(module) == "dfer.jobs.crossval" and module.grouped


def test_folds_lie_in_the_run_folder_and_with_several_seeds_in_one_for_each() -> None:
    assert names() == names("seeds=[7]") == ["fold_1", "fold_2", "fold_3"]
    assert names("seeds=[5,2]") == [f"seed_{seed}/fold_{fold}" for seed in (5, 2) for fold in (1, 2, 3)]
    assert job.parts(demo("seeds=[5,2]", run="s3://b/run/"))[4].run == "s3://b/run/seed_2/fold_2"


@pytest.mark.parametrize(
    ("overrides", "seed", "below"),
    [(["seed=4"], 4, "fold_2"), (["seed=4", "seeds=[9]"], 9, "fold_2"), (["seeds=[5,2]"], 5, "seed_5/fold_2")],
)
def test_each_part_has_its_own_seed_fold_and_folder(overrides: list[str], seed: int, below: str) -> None:
    config = demo(*overrides)
    own = job.config_of_part(config, job.parts(config)[1])
    assert (own.seed, own.fold, own.run) == (seed, 2, f"runs/x/{below}")
    assert replace(own, run=config.run, seed=config.seed, fold=config.fold) == config


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("[1,-2]", "seeds: expected 0 or more, got -2"),
        ("[1,2,1]", "seeds: expected each of them once, got 1, 2, 1"),
        ("3", "seeds: expected a list, got 3"),
    ],
)
def test_seeds_that_are_none_are_refused(seeds: str, said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        demo(f"seeds={seeds}")
    assert said in str(caught.value)


def test_parts_are_chosen_by_name_in_the_order_of_the_job() -> None:
    every = job.parts(demo("seeds=[1,2]"))
    assert chosen(every, []) == every
    assert [part.name for part in chosen(every, ["seed_2/fold_1", "seed_1/fold_3"])] == [
        "seed_1/fold_3",
        "seed_2/fold_1",
    ]
    with pytest.raises(UsageError, match=r"--only: expected some of seed_1/fold_1, .*, got fold_1\. Correct --only"):
        chosen(every, ["fold_1"])


@pytest.mark.parametrize(
    ("there", "overrides", "expected"),
    [("fold_2", ["seeds=[1,2]"], "seed_1/fold_1"), ("seed_4/fold_1", ["seeds=[4]"], "fold_1")],
)
def test_one_seed_and_several_do_not_share_a_folder(
    there: str, overrides: list[str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / there).mkdir(parents=True)
    config = demo(*overrides, run=tmp_path)
    with pytest.raises(UsageError) as caught:
        job.check(config, job.parts(config), [1])
    got = there.partition("/")[0]
    assert str(caught.value) == (
        f"{tmp_path}: expected folders like {expected}, got {got}. "
        "Choose another one with run=FOLDER, or move the folds of one seed into a folder seed_NUMBER."
    )


def test_classes_that_the_shards_lack_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "known_folds", KNOWN_FOLDS)
    write_shards(tmp_path, {"fold_1": [[Clip(key="a")]], "fold_2": [[Clip(key="b")]]})
    shards = f"data.shards={tmp_path}"
    for classes in ("anger,sadness", "happiness,anger,fear"):
        assert names(shards, f"data.classes=[{classes}]") == ["fold_1", "fold_2"]
    with pytest.raises(UsageError, match="anger"):
        names(shards, "data.classes=[anger,anger]")
    with pytest.raises(UsageError, match="expected the 2 classes anger, contempt, got 7 without contempt"):
        names(shards, "data.classes=[anger,contempt]")


def test_joined_sets_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "known_folds", KNOWN_FOLDS)
    for name in ("one", "two"):
        path = write_shards(tmp_path / name, {"fold_1": [[Clip(key=f"{name}a")]], "fold_2": [[Clip(key=name)]]})
        manifest = path / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "dataset": name}))
    both = (f"data.shards={tmp_path}/one", f"data.join=[{tmp_path}/two]")
    assert names(*both, "data.classes=[happiness,anger,fear]") == ["fold_1", "fold_2"]
    with pytest.raises(UsageError, match="expected the 2 classes anger, contempt, got 7 without contempt"):
        names(*both, "data.classes=[anger,contempt]")
    with pytest.raises(UsageError, match=r"data\.join: expected every data set once, got one twice"):
        names(both[0], f"data.join=[{tmp_path}/one]")
    with pytest.raises(DataError, match="three"):
        names(both[0], f"data.join=[{tmp_path}/three]")


@pytest.mark.parametrize(
    ("got", "do"), [("[a,b]", "=a and name further sets in data.join=[b]"), ("['s3://x']", "=s3://x")]
)
def test_a_list_of_shards_is_told_about_join(got: str, do: str) -> None:
    with pytest.raises(
        ConfigProblem, match=re.escape("shards: expected one folder or URL, got ") + ".*" + re.escape(do)
    ):
        demo(f"data.shards={got}")


def test_a_seed_may_be_added_later(tmp_path: Path) -> None:
    def begin(config: RunConfig, part: Part) -> None:
        Path(part.run).mkdir(parents=True)
        (Path(part.run) / "config.yaml").write_text(to_yaml(job.config_of_part(config, part)))

    first = demo("seeds=[1,2]", run=tmp_path)
    for part in job.parts(first):
        begin(first, part)
    more = demo("seeds=[1,2,3]", run=tmp_path)
    job.check(more, job.parts(more), [1])
    other = demo("seeds=[1,2]", "batch=12", run=tmp_path)
    with pytest.raises(CheckpointError, match=r"seed_1/fold_1: expected the configuration it was started with.*batch"):
        job.check(other, job.parts(other), [1])


def test_parts_are_found_in_a_folder_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("seed_10/fold_2", "seed_2/fold_10", "seed_2/fold_9", "fold_3/checkpoints", "launch/ray", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "fold_4").touch()
    found = parts_in(Folder(tmp_path))
    assert [part.name for part in found] == ["fold_3", "seed_2/fold_9", "seed_2/fold_10", "seed_10/fold_2"]
    assert found[1] == Part(name="seed_2/fold_9", run=str(tmp_path / "seed_2" / "fold_9"))
    for name in ("raf_db/results", "temperature_0.01_batch_512/lease", "report/results", "two words/lease", "bin/x"):
        (tmp_path / name).mkdir(parents=True)
    others = {part.name for part in parts_in(Folder(tmp_path))} - {part.name for part in found}
    assert others == {"raf_db", "temperature_0.01_batch_512"}
    assert sorted(["temperature_0.1", "all", "b_2"], key=in_order) == ["all", "b_2", "temperature_0.1"]


def test_what_hosts_share_is_named_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = job.absolute(demo("data.shards=d", "data.cache=c"))
    assert (config.run, config.data.cache) == (f"{tmp_path}/runs/x", f"{tmp_path}/c")
    assert job.shared(config) == {"data.shards": f"{tmp_path}/d"}
