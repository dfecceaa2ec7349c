"""`model.start`: what a run takes from another one, on disks and in buckets, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfer.config import ConfigProblem, from_plain, to_plain, to_yaml
from dfer.data.config import DataConfig
from dfer.distributed import World, process_group
from dfer.emotions import BASIC7, MAFW11, Emotions
from dfer.errors import CheckpointError
from dfer.evaluation.results import read_result
from dfer.jobs.config import RunConfig
from dfer.jobs.describe import describe
from dfer.jobs.evaluate import evaluate_run
from dfer.jobs.train import train
from dfer.models.build import build
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.files import check_files
from dfer.models.start import Taken, take
from dfer.run.checkpoints import Checkpoints
from dfer.run.config import CheckpointConfig
from dfer.run.layout import RESULT
from dfer.storage import Folder
from dfer.store.format import to_json
from dfer.store.shards import Store
from dfer.training.config import GroupConfig, SgdConfig
from tests.unit.data.shardkit import Clip, key_list, write_shards

RATES = {"image": GroupConfig(lr=0.01), "temporal": GroupConfig(lr=0.01), "prompts": GroupConfig(lr=0.01)}


def tiny(*, depth: int = 1, arch: str = "tiny-conv-64", **changes: Any) -> DferClipConfig:
    temporal = TemporalConfig(depth=depth, heads=2, head_dim=16, mlp_dim=48)
    return DferClipConfig(**{"towers": TowersConfig(arch=arch), "temporal": temporal, "num_contexts": 2, **changes})


def model(seed: int, names: tuple[str, ...] = BASIC7, *, frames: int = 2, **changes: Any) -> DferClip:
    return build(tiny(**changes), Emotions(names=names), num_frames=frames, seed=seed)


def taken(target: DferClip, source: DferClip, names: tuple[str, ...], own: tuple[str, ...]) -> Taken:
    weights = {name: value.clone() for name, value in source.state_dict().items()}
    return take(target, weights, classes=names, own_classes=own, where="start")


def test_dfews_seven_contexts_go_into_mafws_eleven_by_name() -> None:
    shuffled = ("fear", *BASIC7[1:6], "happiness")
    source, target, drawn = model(1, shuffled), model(2, MAFW11), model(2, MAFW11)
    found = taken(target, source, shuffled, MAFW11)
    new, old = target.state_dict(), source.state_dict()
    for row, name in enumerate(MAFW11):
        expected = old["prompts.contexts"][shuffled.index(name)] if name in shuffled else drawn.prompts.contexts[row]
        assert torch.equal(new["prompts.contexts"][row], expected), name
    assert all(torch.equal(new[name], old[name]) for name in old if name != "prompts.contexts")
    assert (found.by_class, found.left, found.unused) == (("prompts.contexts",), (), ())
    assert found.fresh_classes == MAFW11[7:] and found.classes == BASIC7
    assert found.lines()[1] == (
        f"prompts.contexts: taken for {', '.join(BASIC7)}; drawn for contempt, anxiety, helplessness, disappointment"
    )


def test_eleven_go_into_seven_and_the_same_seven_in_another_order() -> None:
    for names in (MAFW11, BASIC7[::-1]):
        source, target = model(1, names), model(2)
        taken(target, source, names, BASIC7)
        for row, name in enumerate(BASIC7):
            assert torch.equal(target.prompts.contexts[row], source.prompts.contexts[names.index(name)])  # type: ignore[index]


def test_what_differs_in_shape_is_drawn_and_listed() -> None:
    """Another number of frames, contexts and layers; shared contexts are bound to no class."""
    source, target, drawn = (
        model(1, frames=4, depth=2),
        model(2, num_contexts=3, frames=2),
        model(2, num_contexts=3, frames=2),
    )
    found = taken(target, source, BASIC7, BASIC7)
    assert found.left == ("prompts.contexts", "temporal.positions") and found.by_class == ()
    assert all(torch.equal(target.state_dict()[name], drawn.state_dict()[name]) for name in found.left)
    assert torch.equal(target.state_dict()["temporal.token"], source.state_dict()["temporal.token"])
    assert {name for name in found.unused if name.startswith("temporal.blocks.1.")}
    assert "so drawn: prompts.contexts, temporal.positions" in "\n".join(found.lines())
    shared, other = model(1, shared_contexts=True), model(2, MAFW11, shared_contexts=True)
    found = taken(other, shared, BASIC7, MAFW11)
    assert "prompts.contexts" in found.whole and torch.equal(other.prompts.contexts, shared.prompts.contexts)  # type: ignore[arg-type]


def test_other_towers_are_refused_not_mixed() -> None:
    source, target = model(1, arch="tiny-vit-64"), model(2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"start: expected towers\.\S+ of \(.*Set model.towers.arch and"
    ) as caught:
        taken(target, source, BASIC7, BASIC7)
    assert caught.value.exit_code == 5
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())


def test_a_key_of_earlier_versions_is_told_what_to_do(tmp_path: Path) -> None:
    """null stands in the run folders of earlier versions."""
    plain = to_plain(run_config("x", DataConfig(shards="y")))
    old = {**plain, "model": {**plain["model"], "released": None}}
    assert from_plain(RunConfig, old) == from_plain(RunConfig, plain)
    with pytest.raises(ConfigProblem) as caught:
        from_plain(RunConfig, {**plain, "model": {**plain["model"], "released": "a.pth"}})
    assert str(caught.value) == (
        "model.released: a key of earlier versions. Make a saved model of the file, `dfer import FILE --method "
        "dfer_clip --dataset SET OUT`, and set model.start=OUT in its place"
    )
    with pytest.raises(ConfigProblem, match=r"model\.GONE: unknown key"):
        from_plain(RunConfig, {**plain, "model": {**plain["model"], "GONE": {}}})


# --- runs


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


def shards(folder: Path, keys: str = "12") -> DataConfig:
    write_shards(folder, {f"fold_{k}": [[Clip(key=key)]] for k, key in enumerate(keys, start=1)})
    return DataConfig(shards=str(folder), workers=0, frames=2, size=64)


def run_config(home: str | Path, data: DataConfig, **changes: Any) -> RunConfig:
    values = {
        "run": str(home),
        "epochs": 1,
        "batch": 1,
        "data": data,
        "model": tiny(),
        "optim": SgdConfig(groups=RATES),
    }
    return RunConfig(**{**values, **changes})


def other_run(home: Folder | Path, config: RunConfig, *, seed: int = 9) -> dict[str, torch.Tensor]:
    """The folder of a run as training leaves it; its weights."""
    folder = home if isinstance(home, Folder) else Folder(home)
    weights = {k: v.contiguous() for k, v in model(seed).state_dict().items()}
    manifest = sha256(to_json(Store(config.data.shards).manifest)).hexdigest()
    checkpoints = Checkpoints(folder, world=World(), config=CheckpointConfig())
    checkpoints.start(None)
    state = {"classes": list(BASIC7), "manifest_sha256": manifest, "model": {"towers": {"arch": "tiny-conv-64"}}}
    checkpoints.save(7, weights=weights, optimizer={}, state={**state, "best": None})
    checkpoints.finish()
    folder.write("config.yaml", to_yaml(config).encode())
    return weights


def frozen(home: str | Path, data: DataConfig, start: str, **changes: Any) -> RunConfig:
    """A run whose weights move by nothing that counts, so that they show what they began as."""
    still = SgdConfig(groups={name: GroupConfig(lr=1e-30) for name in RATES}, weight_decay=0.0)
    return run_config(home, data, model=tiny(start=start, **changes), optim=still, epochs=2)


def weights_of(home: Path) -> dict[str, torch.Tensor]:
    return load_file(max((home / "checkpoints").glob("step_*")) / "weights.safetensors")


def test_a_run_begins_from_another_and_says_so(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shards(tmp_path / "a")
    theirs = other_run(tmp_path / "dfew", run_config(tmp_path / "dfew", data))
    config = frozen(tmp_path / "run", shards(tmp_path / "b", "34"), str(tmp_path / "dfew"))
    dry = describe(config, World())
    result = train(config, alone)
    found = weights_of(tmp_path / "run")
    assert found.keys() == theirs.keys()
    assert all((found[name] - value).abs().max() < 1e-15 for name, value in theirs.items())
    hashed = sha256(next((tmp_path / "dfew" / "checkpoints").glob("*/weights.safetensors")).read_bytes()).hexdigest()
    assert result.start == f"{tmp_path / 'dfew'}, step 7, last, weights sha256 {hashed}"
    assert read_result(Folder(tmp_path / "run")) == result
    notes = json.loads((tmp_path / "run" / "environment.json").read_text())["weights"]
    assert notes[0] == f"begins from {result.start}" and "tensors taken as they are" in notes[1]
    said = capsys.readouterr().err
    assert all(f"note: {note}\n" in said and f"weights: {note}" in dry for note in notes)

    # Continued and evaluated when the other run is gone: it is needed no more, and still told.
    shutil.rmtree(tmp_path / "dfew")
    again = evaluate_run(config, alone, trained=True)
    (tmp_path / "run" / RESULT).unlink()
    resumed = train(config, alone)
    assert resumed.start == again.start == result.start
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"] == notes
    with pytest.raises(
        CheckpointError, match=r"model\.start=.*dfew: expected the run folder of a fold, or a .*, got no"
    ):
        train(replace(config, run=str(tmp_path / "fresh")), alone)


def test_it_begins_from_a_bucket_and_from_the_same_fold_of_a_crossvalidation(tmp_path: Path, alone: World) -> None:
    data = shards(tmp_path / "a")
    home = Folder("memory://start/dfew", what="run")
    other_run(home / "fold_1", run_config("x", data), seed=3)
    theirs = other_run(home / "fold_2", run_config("x", data, fold=2), seed=4)
    config = replace(frozen(tmp_path / "run", data, "memory://start/dfew"), fold=2)
    assert train(config, alone).start.startswith("memory://start/dfew/fold_2, step 7, last, ")
    assert torch.equal(weights_of(tmp_path / "run")["prompts.contexts"], theirs["prompts.contexts"])


def test_weights_as_they_begin_are_evaluated_as_that_run_chose_them(tmp_path: Path, alone: World) -> None:
    data = shards(tmp_path / "a")
    other_run(tmp_path / "dfew", run_config(tmp_path / "dfew", data))
    config = replace(frozen(tmp_path / "zero", data, str(tmp_path / "dfew")), select="best_on_test")
    result = evaluate_run(config, alone, trained=False)
    assert (result.step, result.selection, result.checkpoint) == (0, "last", str(tmp_path / "dfew"))


def refusal(config: RunConfig, world: World) -> str:
    with pytest.raises(CheckpointError) as caught:
        train(config, world)
    assert caught.value.exit_code == 5 and not Path(config.run).exists()
    return str(caught.value)


def test_another_protocol_over_the_same_shards_may_have_seen_the_test_clips(tmp_path: Path, alone: World) -> None:
    """Fold 1 of both protocols; told by the clips, since one names partitions and the other lists of keys."""
    folder = tmp_path / "a"
    other = {"train": key_list(folder, "other.1.train.txt", ["1"]), "test": key_list(folder, "other.1.test.txt", ["2"])}
    partitions = {f"fold_{k}": [[Clip(key=str(k))]] for k in (1, 2)}
    write_shards(folder, partitions, protocols={"other": {"source": "here", "folds": {"1": other, "2": other}}})
    data = DataConfig(shards=str(folder), workers=0, frames=2, size=64)
    other_run(tmp_path / "dfew", run_config(tmp_path / "dfew", replace(data, protocol="other")))
    said = refusal(frozen(tmp_path / "run", data, str(tmp_path / "dfew")), alone)
    assert "of fold 1, got one trained on protocols/other.1.train.txt. Begin from a run with data.protocol=pub" in said
    # The same protocol and fold, and another fold of it that trains on the same clips, have seen none.
    for fold in (1, 2):
        config = frozen(tmp_path / f"run_{fold}", replace(data, protocol="other"), str(tmp_path / "dfew"))
        assert train(replace(config, fold=fold), alone).start.startswith(f"{tmp_path / 'dfew'}, step 7, last, ")


def test_another_fold_of_the_same_shards_has_seen_the_test_clips(tmp_path: Path, alone: World) -> None:
    data = shards(tmp_path / "a")
    other_run(tmp_path / "dfew", run_config(tmp_path / "dfew", data, fold=2))
    said = refusal(frozen(tmp_path / "run", data, str(tmp_path / "dfew")), alone)
    assert "expected a run that saw none of the test clips of fold 1, got one trained on fold_1." in said
    assert said.endswith("Begin from that run's fold 1.")


def test_what_is_no_run_to_begin_from(tmp_path: Path, alone: World) -> None:
    data = shards(tmp_path / "a")
    (tmp_path / "w.pt").touch()
    said = refusal(frozen(tmp_path / "run", data, str(tmp_path / "w.pt")), alone)
    assert (
        "expected the run folder of a fold, or a saved model, got a file. Give a folder; a CLIP's file goes to" in said
    )
    other = tmp_path / "other"
    other.mkdir()
    said = refusal(frozen(tmp_path / "run", data, str(other)), alone)
    assert (
        f"model.start={other}: expected the run folder of a fold, or a saved model, got no config.yaml in it, "
        "and none in fold_1" in said
    )
    (other / "config.yaml").write_text(to_yaml(run_config(other, data)))
    said = refusal(frozen(tmp_path / "run", data, str(other)), alone)
    assert "expected a checkpoint selected by `last`, got none. Train that run first" in said
    (other / "config.yaml").write_text("select: worst")
    assert "got worst. Begin from another run." in refusal(frozen(tmp_path / "run", data, str(other)), alone)
    (other / "config.yaml").write_text("a: [")
    assert "expected the configuration of a run, got not valid YAML" in refusal(
        frozen(tmp_path / "run", data, str(other)), alone
    )


def test_the_same_tensors_with_another_architecture_are_refused(tmp_path: Path, alone: World) -> None:
    """ViT-B-32 and ViT-B-32-quickgelu differ in nothing but the activation."""
    data = shards(tmp_path / "a")
    other_run(tmp_path / "dfew", run_config(tmp_path / "dfew", data))
    config = frozen(tmp_path / "run", data, str(tmp_path / "dfew"), arch="tiny-vit-64")
    said = refusal(config, alone)
    assert "expected towers of tiny-vit-64, got tiny-conv-64. Set model.towers.arch=tiny-conv-64." in said


def test_a_checkpoint_without_class_names_is_refused(tmp_path: Path, alone: World) -> None:
    data = shards(tmp_path / "a")
    home = Folder(tmp_path / "dfew")
    checkpoints = Checkpoints(home, world=World())
    checkpoints.start(None)
    state = {"model": {"towers": {"arch": "tiny-conv-64"}}, "best": None}
    checkpoints.save(1, weights={"w": torch.ones(1)}, optimizer={}, state=state)
    checkpoints.finish()
    home.write("config.yaml", to_yaml(run_config(home.url, data)).encode())
    said = refusal(frozen(tmp_path / "run", data, str(tmp_path / "dfew")), alone)
    assert "expected class names in the checkpoint's state, got none. Begin from another checkpoint" in said


def test_launchers_look_for_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.start=.*gone: expected the run folder of a fold, or .*, got no such"
    ):
        check_files(tiny(start=str(tmp_path / "gone")))
    check_files(tiny(start=str(tmp_path)))
    check_files(tiny(start="s3://bucket/run"))
    check_files(tiny(start=str(tmp_path / "gone")), weights=False)


def test_a_file_whose_activation_is_unknown_is_told_everywhere(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the dry run, in the log, and in environment.json, where a later start leaves it."""
    clip = {
        name.removeprefix("towers.").removeprefix("text."): value
        for name, value in model(3).state_dict().items()
        if name.startswith("towers.")
    }
    torch.save(clip, tmp_path / "clip.pt")
    towers = TowersConfig(arch="tiny-conv-64", pretrained=str(tmp_path / "clip.pt"))
    config = run_config(tmp_path / "run", shards(tmp_path / "a"), model=replace(tiny(), towers=towers))
    dry = describe(config, World())
    train(config, alone)
    (note,) = json.loads((tmp_path / "run" / "environment.json").read_text())["weights"]
    assert note.startswith(f"model.towers.pretrained={towers.pretrained}: ") and "the file cannot confirm it" in note
    assert f"note: {note}\n" in capsys.readouterr().err and f"weights: {note}" in dry
    (tmp_path / "run" / RESULT).unlink()
    train(config, alone)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"] == [note]
    assert "note: " not in capsys.readouterr().err
