"""Files of the released CNNs, of DK-CLIP and of X-CLIP: their class order, their folds and what they leave out."""

import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dfer.__main__ import main
from dfer.config import ConfigProblem
from dfer.distributed import World
from dfer.emotions import BASIC7, CK7, label_set
from dfer.errors import CheckpointError
from dfer.jobs.config import load_run
from dfer.jobs.importing import Taken, import_model
from dfer.jobs.initial import untrained_model
from dfer.models.build import build
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.foreign.dk_clip import extended
from dfer.models.foreign.weights import read_weights
from dfer.models.saved import Origin, open_saved
from dfer.storage import Folder
from tests.unit.jobs.test_saved import quick_arch

REFERENCE = Path(__file__).parents[2] / "reference"
Capture = pytest.CaptureFixture[str]
FER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
CK = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "contempt")
STEM, BLOCKS = 3, 2
"""Layers of our ResNet18 before its first block; blocks of a stage."""


def cnn_file(folder: Path, *, wins: int, rows: int = 7) -> Path:
    """A narrow ResNet18 in the released layout that answers with one row for every picture."""
    model = build(CnnConfig(net="resnet18", width=4), label_set("basic7"), num_frames=1, seed=1)
    net: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        part, number, rest = [*name.split(".", 2), ""][:3]
        if part == "body":
            block = int(number) - STEM
            begin = ("conv1", "bn1")[int(number)] if block < 0 else f"layer{1 + block // BLOCKS}.{block % BLOCKS}"
            net[f"{begin}.{rest}"] = value
    net |= {"linear.weight": torch.zeros(rows, 32), "linear.bias": 9.0 * torch.eye(rows)[wins]}
    torch.save({"net": net, "best_Test_acc": 95.96, "best_Test_acc_epoch": 31}, folder / "Test_model.t7")
    return folder / "Test_model.t7"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    folder = tmp_path / "picture"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.full((48, 48, 3), 90, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("dataset", "wins", "name"),
    [*(("fer2013", k, FER[k]) for k in (0, 3, 6)), ("ckplus48", 6, "contempt"), ("CKplus", 4, "sadness")],
)
def test_each_row_of_a_cnn_answers_under_its_own_class(
    tmp_path: Path, picture: Path, capsys: Capture, dataset: str, wins: int, name: str
) -> None:
    """The released order is neither that of `basic7` nor that of `ck7`."""
    file, out = str(cnn_file(tmp_path, wins=wins)), str(tmp_path / "out")
    assert main(["import", file, "--method", "resnet18", "--dataset", dataset, out, "model.width=4"]) == 0
    capsys.readouterr()
    assert main(["predict", out, str(picture)]) == 0
    assert f"{picture}  {name} " in capsys.readouterr().out
    saved = open_saved(out)
    assert saved is not None and saved.config.classes == (BASIC7 if dataset == "fer2013" else CK7)


def imported(file: Path, out: Path | None, *overrides: str, dataset: str = "ckplus48", **changes: Any) -> Taken:
    target = Folder(out) if out else None
    return import_model(
        file, target, method="resnet18", dataset=dataset, overrides=["model.width=4", *overrides], **changes
    )


def test_a_cnn_of_a_set_without_a_known_order_or_with_other_classes_is_refused(tmp_path: Path) -> None:
    file = cnn_file(tmp_path, wins=0)
    with pytest.raises(ConfigProblem, match=r"--dataset: expected one of fer2013, ckplus, ckplus48, got raf_db\. "):
        imported(file, None, dataset="raf_db")
    with pytest.raises(ConfigProblem, match=r"data\.classes: expected the classes anger, .*contempt, got happiness, "):
        imported(file, None, "data.classes=basic7")
    with pytest.raises(CheckpointError, match=r"expected 7 rows in the last layer, .*, got \(6, 32\)\. Give"):
        imported(cnn_file(tmp_path, wins=0, rows=6), None)
    given = imported(cnn_file(tmp_path, wins=0), None, f"data.classes=[{', '.join(reversed(CK))}]")
    assert given.weights["head.bias"].argmax() == 6  # anger, now the last


def test_a_fold_is_one_of_the_protocol_that_the_authors_trained_on(tmp_path: Path) -> None:
    """A fold of another protocol would let an evaluation pass on pictures that the file was trained on."""
    file = cnn_file(tmp_path, wins=0)
    with pytest.raises(ConfigProblem, match=r"expected positional, whose .*, got subjects\. Add data\.pro"):
        imported(file, None, dataset="ckplus", fold=3)
    imported(file, tmp_path / "out", "data.protocol=positional", dataset="ckplus", fold=3)
    saved = open_saved(str(tmp_path / "out"))
    assert saved is not None and (saved.config.origin.protocol, saved.config.origin.fold) == ("positional", 3)
    imported(file, tmp_path / "fer", dataset="fer2013", fold=1)
    saved = open_saved(str(tmp_path / "fer"))
    assert saved is not None and (saved.config.origin.protocol, saved.config.origin.fold) == ("private", 1)


# --- DK-CLIP

RELEASED = (
    (r"towers\.visual\.blocks\.(.+)", r"visual.transformer.resblocks.\1"),
    (r"towers\.visual\.(.+)", r"visual.\1"),
    (r"towers\.text\.(.+)", r"\1"),
    (r"semantic\.blocks\.(.+)", r"visual_semantic.transformer.resblocks.\1"),
    (r"semantic\.(.+)", r"visual_semantic.\1"),
    (r"integration\.positions", r"msim.positional_embedding"),
    (r"integration\.norm(.)\.(.+)", r"msim.resblocks.0.ln_\1.\2"),
    (r"integration\.mlp\.0\.(.+)", r"msim.resblocks.0.mlp.c_fc.\1"),
    (r"integration\.mlp\.2\.(.+)", r"msim.resblocks.0.mlp.c_proj.\1"),
    (r"integration\.(.+)", r"msim.resblocks.0.\1"),
    (r"visual_tokens\.norm\.(.+)", r"prompts_visual_ln.\1"),
    (r"visual_tokens\.proj", r"prompts_visual_proj"),
    (r"prompts\.layers\.(.)\.norm2\.(.+)", r"prompts_generator_cmam.decoder.\1.norm3.\2"),
    (r"prompts\.layers\.(.)\.mlp\.2\.(.+)", r"prompts_generator_cmam.decoder.\1.mlp.3.\2"),
    (r"prompts\.layers\.(.+)", r"prompts_generator_cmam.decoder.\1"),
    (r"prompts\.(.+)", r"prompts_generator_cmam.\1"),
)
"""Names of this project, and the released ones."""


def released_name(name: str) -> str:
    return next(re.sub(own, theirs, name) for own, theirs in RELEASED if re.fullmatch(own, name))


def dk_clip_weights(folder: Path, dataset: str = "basic7") -> dict[str, Tensor]:
    """A small DK-CLIP of this project under the released names, with what the release has besides."""
    config = DkClipConfig(towers=TowersConfig(arch=quick_arch(folder)))
    model = build(config, label_set(dataset), num_frames=16, seed=3)
    found = {released_name(name): value for name, value in model.state_dict().items()}
    found["msim.positional_embedding"] = found["msim.positional_embedding"][None]
    beside = {"visual_semantic.proj": torch.ones(64, 64), "visual_semantic.ln_post.weight": torch.ones(64)}
    return {**found, **beside, "logit_scale": torch.tensor(100.0).log()}


def dk_clip_words(folder: Path, **state: Tensor) -> list[str]:
    torch.save({"model": state, "max_accuracy": 71.2}, folder / "best.pth")
    arch = ["data.size=64", f"model.towers.arch={quick_arch(folder)}", "model.towers.pretrained=null"]
    return ["import", str(folder / "best.pth"), "--method", "dk_clip", "--dataset", "dfew", *arch]


def test_a_dry_run_of_dk_clip_lists_what_is_left_out(tmp_path: Path, capsys: Capture) -> None:
    assert main([*dk_clip_words(tmp_path, **dk_clip_weights(tmp_path)), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "leaves out visual_semantic.proj: the second encoder's class token is not used" in said
    assert "leaves out visual_semantic.ln_post.weight: the second" in said
    assert "leaves out logit_scale: CLIP's own scale, 100" in said


def test_dk_clip_has_no_rows_of_classes(tmp_path: Path) -> None:
    """Its classes are texts of the configuration, so an import needs no class order."""
    seven, eleven = dk_clip_weights(tmp_path), dk_clip_weights(tmp_path, "mafw11")
    assert {name: value.shape for name, value in seven.items()} == {k: v.shape for k, v in eleven.items()}


def test_errors_of_dk_clip_name_the_file(tmp_path: Path, capsys: Capture) -> None:
    whole = dk_clip_weights(tmp_path)
    refused: list[tuple[dict[str, Tensor], str]] = [
        (
            {**whole, "fc.weight": torch.ones(2)},
            "expected the names of DK-CLIP's or X-CLIP's released code, got fc",
        ),
        ({**whole, "logit_scale": torch.tensor(2.0)}, "expected logit_scale of 4.605, as CLIP has it, got 2.000"),
    ]
    for state, said in refused:
        assert main([*dk_clip_words(tmp_path, **state), str(tmp_path / "out")]) == 5
        assert f"{tmp_path}/best.pth: {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- X-CLIP

SMALL = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
"""The CLIP in `x_clip.pth`, which the released class saved."""


def x_clip(folder: Path, *words: str) -> list[str]:
    """The import of the recorded file of X-CLIP: 8 frames."""
    (folder / "k400.pth").write_bytes(gzip.decompress((REFERENCE / "x_clip.pth.gz").read_bytes()))
    (folder / "small.json").write_text(json.dumps(SMALL))
    own = [f"model.towers.arch={folder / 'small.json'}", "model.towers.pretrained=null", "data.size=16"]
    return ["import", str(folder / "k400.pth"), "--method", "dk_clip", "--dataset", "dfew", *own, *words]


def test_an_x_clip_is_a_start_for_dk_clip(tmp_path: Path, capsys: Capture) -> None:
    """Every weight of the file is there: 4 snippets have the mean positions of 2 frames each, and the second encoder
    is the first one, messages and all."""
    out = tmp_path / "out"
    assert main(x_clip(tmp_path, str(out))) == 0
    assert f"use it as model.start={out}\n" in capsys.readouterr().out
    theirs, saved = read_weights(tmp_path / "k400.pth"), open_saved(str(out))
    assert saved is not None and saved.config.origin == Origin(
        made_by="start",
        source="k400.pth",
        source_sha256=hashlib.sha256((tmp_path / "k400.pth").read_bytes()).hexdigest(),
    )
    found = saved.weights()
    used = {name for name in theirs if name != "logit_scale"}
    assert {float(theirs[name].flatten()[0]) for name in used} <= {float(v.flatten()[0]) for v in found.values()}
    assert found["integration.positions"].shape == (4, 64)
    for name in ("blocks.0.message_attn.in_proj_weight", "blocks.0.mlp.c_fc.weight", "ln_pre.bias", "class_embedding"):
        released = theirs[f"visual.{name.replace('blocks', 'transformer.resblocks')}"]
        assert found[f"semantic.{name}"].eq(released).all() and found[f"towers.visual.{name}"].eq(released).all()
    card = (out / "README.md").read_text()
    assert (
        "# A start for dk_clip, not trained on these classes" in card and "| start | an X-CLIP, its positions" in card
    )
    assert "dfer predict" not in card and "dfer evaluate" not in card and "model.start=FOLDER" in card


def test_positions_of_frames_become_those_of_snippets() -> None:
    positions = torch.arange(16.0).view(8, 2)
    own = {"integration.positions": torch.zeros(4, 2), "semantic.ln_pre.bias": torch.ones(2)}
    given = {"integration.positions": positions, "towers.visual.ln_pre.bias": torch.full((2,), 3.0)}
    copied = extended(given, own, copied=True, where="f")
    assert copied["integration.positions"].tolist() == [[1, 2], [5, 6], [9, 10], [13, 14]]
    assert copied["semantic.ln_pre.bias"].tolist() == [3, 3]
    drawn = extended(given, own, copied=False, where="f")
    assert drawn["semantic.ln_pre.bias"].tolist() == [1, 1]


def test_an_x_clip_answers_nothing_has_no_fold_and_its_frames_are_divided(tmp_path: Path, capsys: Capture) -> None:
    assert main([*x_clip(tmp_path), "--dry-run", "--fold", "1"]) == 2
    assert "--fold: expected none for an X-CLIP, got 1. Leave it out." in capsys.readouterr().err
    assert main([*x_clip(tmp_path), "--dry-run", "data.frames=12"]) == 5
    said = "k400.pth: expected positions of an X-CLIP's frames, a multiple of 3 snippets, got 8. Set data.frames and"
    assert said in capsys.readouterr().err
    assert main(x_clip(tmp_path, str(tmp_path / "out"))) == 0
    assert main(["predict", str(tmp_path / "out"), str(tmp_path)]) == 5
    said = f"expected a trained model, got one to begin a training with. Train with it first: model.start={tmp_path}"
    assert said in capsys.readouterr().err


def test_a_dk_clip_begins_from_an_imported_x_clip(tmp_path: Path) -> None:
    """All of its tensors are taken; with 3 snippets in place of 4 only the positions are drawn."""
    assert main(x_clip(tmp_path, str(tmp_path / "out"))) == 0
    saved = open_saved(str(tmp_path / "out"))
    assert saved is not None
    for frames, drawn in ((16, ()), (12, ("integration.positions",))):
        config = load_run(["methods/dk_clip", "sets/dfew"], [f"model.start={tmp_path / 'out'}"])
        model = replace(config.model, towers=TowersConfig(arch=str(tmp_path / "out/towers.arch.json")))
        config = replace(config, model=model, data=replace(config.data, frames=frames, size=16))
        own = untrained_model(config, label_set("basic7"), World()).model
        expected = saved.weights()
        assert own.state_dict().keys() == expected.keys()
        same = {name for name, value in own.state_dict().items() if torch.equal(value, expected[name])}
        assert expected.keys() - same == {*drawn}
