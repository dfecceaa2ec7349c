"""Teachers: BLIP-2 and InstructBLIP beside the modules of transformers, text encoders, words; missing files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoTokenizer

from dfer.errors import CheckpointError, DataError, UsageError
from dfer.teacher.blip2 import EXACT
from dfer.teacher.build import build_teacher, refuse_bare
from dfer.teacher.config import (
    DESCRIBE,
    Blip2TeacherConfig,
    InstructBlipTeacherConfig,
    TextTeacherConfig,
    WordsTeacherConfig,
)
from dfer.teacher.files import check, identity
from dfer.teacher.teacher import Teacher
from tests.unit.teacher import models

CPU = torch.device("cpu")
PICTURES = torch.randint(0, 256, (3, 3, models.SIDE, models.SIDE), dtype=torch.uint8, generator=torch.Generator())
CONFIGS = {"blip2": Blip2TeacherConfig, "instruct_blip": InstructBlipTeacherConfig}
every = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    made = {kind: models.blip(kind, home / kind) for kind in CONFIGS}
    return made | {"text": models.text_encoder(home / "text")}


@pytest.fixture(scope="module")
def right(folders: dict[str, Path]) -> dict[str, Tensor]:
    """The features of both teachers in fp32."""
    return {kind: teacher_of(kind, folders)(PICTURES, []) for kind in CONFIGS}


def teacher_of(kind: str, folders: dict[str, Path], **more: Any) -> Teacher:
    config = CONFIGS[kind](**{"model": str(folders[kind]), "precision": "fp32", **more})
    return build_teacher(config, CPU)


def released(kind: str, folder: Path) -> Any:
    return models.BLIPS[kind][1].from_pretrained(folder).eval()


def ids(folder: Path) -> Tensor:
    return torch.tensor([AutoTokenizer.from_pretrained(folder)(DESCRIBE)["input_ids"]])


@every
@torch.no_grad()
def test_features_are_those_of_the_modules_called_one_by_one(kind: str, folders: dict[str, Path]) -> None:
    model, words = released(kind, folders[kind]), ids(folders[kind]).expand(3, -1)
    patches = model.vision_model(PICTURES.float() / 255).last_hidden_state
    query = model.query_tokens.expand(3, -1, -1)
    asked = {"input_ids": words} if kind == "instruct_blip" else {}
    if asked:
        asked["attention_mask"] = torch.ones(3, models.QUERIES + words.shape[1], dtype=torch.int64)
    seen = model.qformer(
        query_embeds=query,
        encoder_hidden_states=patches,
        encoder_attention_mask=torch.ones(patches.shape[:2]),
        **asked,
    )[0]
    tokens = torch.cat([model.language_projection(seen[:, : models.QUERIES]), model.language_model.shared(words)], 1)
    last = model.language_model.encoder(inputs_embeds=tokens, attention_mask=torch.ones(tokens.shape[:2]))[0]
    assert words[0, -1] == 1  # the closing token
    found = teacher_of(kind, folders)(PICTURES, [""] * 3)
    assert found.shape == (3, models.WIDTH) and found.dtype == torch.float32
    torch.testing.assert_close(found, last.mean(dim=1), rtol=1e-5, atol=1e-6)


@every
@torch.no_grad()
def test_features_are_what_the_encoder_gives_while_it_generates(kind: str, folders: dict[str, Path]) -> None:
    model, words = released(kind, folders[kind]), ids(folders[kind]).expand(3, -1)
    states: list[Tensor] = []
    model.language_model.encoder.final_layer_norm.register_forward_hook(lambda module, given, out: states.append(out))
    query = torch.full((3, models.QUERIES), models.IMAGE)
    asked = {"qformer_input_ids": words} if kind == "instruct_blip" else {}
    model.generate(PICTURES.float() / 255, input_ids=torch.cat([query, words], 1), num_beams=2, max_length=3, **asked)
    found = teacher_of(kind, folders)(PICTURES, [""] * 3)
    torch.testing.assert_close(found, states[0].mean(dim=1), rtol=1e-5, atol=1e-6)


@every
def test_a_teacher_is_frozen_and_in_evaluation_mode_but_for_dropout(kind: str, folders: dict[str, Path]) -> None:
    still = teacher_of(kind, folders)
    still.train()
    assert torch.equal(still(PICTURES, []), still(PICTURES, [])) and not any(
        p.requires_grad for p in still.parameters()
    )
    noisy = teacher_of(kind, folders, dropout=True)
    torch.manual_seed(1)
    drawn = [noisy(PICTURES, []) for _ in range(2)]
    torch.manual_seed(1)
    assert not torch.equal(*drawn) and torch.equal(noisy(PICTURES, []), drawn[0])
    assert not noisy.model.vision_model.training  # type: ignore[union-attr]


@every
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@torch.no_grad()
def test_half_formats_leave_the_qformer_as_it_is_in_the_file(
    kind: str, precision: str, dtype: torch.dtype, folders: dict[str, Path], right: dict[str, Tensor]
) -> None:
    teacher = teacher_of(kind, folders, precision=precision)
    own = dict(teacher.model.named_parameters())  # type: ignore[union-attr]
    stored = [safetensors.torch.load_file(path) for path in sorted(folders[kind].glob("*.safetensors"))]
    exact = {name: value for part in stored for name, value in part.items() if name.startswith(EXACT)}
    assert {name.split(".")[0] for name in exact} == {"query_tokens", "qformer", "language_projection"}
    assert all(own[name].dtype == torch.float32 and torch.equal(own[name], value) for name, value in exact.items())
    assert own["vision_model.embeddings.patch_embedding.weight"].dtype == dtype
    assert own["language_model.encoder.block.0.layer.0.SelfAttention.q.weight"].dtype == dtype
    rough = teacher(PICTURES, [])
    assert rough.dtype == torch.float32 and 0 < (rough - right[kind]).abs().max() < 0.02 * right[kind].abs().max()


def test_the_instruction_counts(folders: dict[str, Path], right: dict[str, Tensor]) -> None:
    other = teacher_of("blip2", folders, instruction="facial action")(PICTURES, [])
    assert (other - right["blip2"]).abs().max() > 1e-3


def test_pictures_of_another_size_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"pictures: expected 28 x 28 pixels, .*, got 32 x 32. Set pairs.size=28"):
        teacher_of("blip2", folders)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [""])


def test_words_share_their_vectors_in_every_process() -> None:
    config = WordsTeacherConfig(dim=64)
    teacher = build_teacher(config, CPU)
    found = teacher(PICTURES, ["Brow raised.", "brow", ""])
    assert found.shape == (3, 64) and not found[2].any()
    assert torch.equal(found[0], teacher(PICTURES, ["raised BROW", "", ""])[0])
    assert not torch.equal(found, build_teacher(WordsTeacherConfig(dim=64, seed=2), CPU)(PICTURES, ["brow", "", ""]))
    # Recorded once: the draw may not depend on process, machine or version.
    assert found[1][:3].tolist() == pytest.approx([-0.4309732914, -1.9226665497, 0.7094992995], abs=1e-6)


def test_pictures_without_descriptions_are_named() -> None:
    with pytest.raises(DataError, match=r"here: expected a description of each of 3 pictures, got 2 without \(a, c\)"):
        refuse_bare("here", ["a", "b", "c"], [None, "brow", ""])


def changed(folders: dict[str, Path], folder: Path, kind: str = "blip2") -> Path:
    return Path(shutil.copytree(folders[kind], folder / "model"))


@pytest.mark.parametrize("kind", ["blip2", "instruct_blip", "text"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path, kind)
    config = TextTeacherConfig(model=str(folder)) if kind == "text" else CONFIGS[kind](model=str(folder))
    places = [folder, folder / "qformer_tokenizer"] if kind == "instruct_blip" else [folder]
    for place in places:
        kept = (place / "tokenizer.json").rename(tmp_path / "kept")
        with pytest.raises(
            CheckpointError, match=f"{place}: expected tokenizer.json or spiece.model, got neither. Copy"
        ):
            check(config)
        kept.rename(place / "tokenizer.json")
    check(config)


@every
def test_a_tokenizer_that_is_not_the_models_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path, kind)
    place = folder / "qformer_tokenizer" if kind == "instruct_blip" else folder

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=f"{place}: expected a tokenizer of .*{match}.* Copy or download the"):
            build_teacher(CONFIGS[kind](model=str(folder), precision="fp32"), CPU)

    models.word_tokenizer(["other", "words"]).save_pretrained(place)
    refused(r"encodes 'Please play .*', got \d+ tokens, none of them of a word")
    models.word_tokenizer([*map(str, range(200)), *DESCRIBE.split()]).save_pretrained(place)
    refused(r"got token 2\d\d, but the model has 128")
    plain = json.loads((folders[kind] / "tokenizer.json").read_text()) | {"post_processor": None}
    shutil.copytree(folders[kind], place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    (place / "tokenizer.json").write_text(json.dumps(plain))
    refused(r"got token \d+ at the end, where 1 closes a text")
    (place / "tokenizer.json").write_text("{}")
    refused(r"transformers, got .+")


def test_missing_files_are_named_before_a_model_is_built(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path)
    config = Blip2TeacherConfig(model=str(folder))
    check(config)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(CheckpointError) as caught:
        check(config)
    assert (
        f"{folder}: expected all files named in model.safetensors.index.json, got 1 of {len(shards)} missing: "
        in str(caught.value)
    )
    assert shards[1].name in str(caught.value)
    for path in [*shards, folder / "model.safetensors.index.json"]:
        path.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"or model.safetensors.index.json, got none. Copy or download"):
        check(config)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"got pytorch_model.bin, which is read by running code. Convert it"):
        check(config)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object, got something else"):
        check(config)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"got no config\.json"):
        check(config)
    with pytest.raises(CheckpointError, match=r"got no folder\. Correct teacher\.model"):
        check(Blip2TeacherConfig(model=str(tmp_path / "nowhere")))


def test_a_model_of_another_kind_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"expected model_type blip-2 for teacher.name=blip2, got instructblip"):
        check(Blip2TeacherConfig(model=str(folders["instruct_blip"])))
    with pytest.raises(UsageError, match=r"expected the installed package no_such_thing, got none. Install it"):
        check(TextTeacherConfig(model="package:no_such_thing"))


def test_names_in_an_index_stay_in_their_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"expected names of files beside it, got ../x.safetensors"):
        check(Blip2TeacherConfig(model=str(folder)))


def test_identity_changes_with_all_that_features_depend_on(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path)
    base = Blip2TeacherConfig(model=str(folder))
    own = identity(base)
    assert own == identity(base) and own["instruction"] == DESCRIBE
    assert identity(Blip2TeacherConfig(model=str(folder), precision="fp32")) != own
    assert identity(Blip2TeacherConfig(model=str(folder), instruction="other")) != own
    (folder / "tokenizer.json").write_text("{}")
    assert identity(base)["sha256"] != own["sha256"]
    hub = identity(Blip2TeacherConfig(revision="abc"))
    assert (hub["model"], hub["revision"]) == ("Salesforce/blip2-flan-t5-xxl", "abc")


def test_a_folder_that_lacks_weights_of_the_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders, tmp_path)
    plain = json.loads((folder / "config.json").read_text())
    plain["qformer_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=r"expected weights of the whole model, got none for \d+ \(qformer"):
        build_teacher(Blip2TeacherConfig(model=str(folder)), CPU)
