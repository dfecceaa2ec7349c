"""Random models of transformers in small folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from dfer.bench.tokenizer import word_tokenizer
from dfer.teacher.config import DESCRIBE

SIDE, QUERIES, WIDTH = 28, 4, 24
IMAGE = 100
"""Number of the token that stands for a query."""
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 16,
    "vocab_size": 128,
}
T5 = {
    "model_type": "t5",
    "d_model": WIDTH,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "d_kv": 12,
    "vocab_size": 128,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
BLIPS = {
    "blip2": (Blip2Config, Blip2ForConditionalGeneration),
    "instruct_blip": (InstructBlipConfig, InstructBlipForConditionalGeneration),
}


def blip(kind: str, folder: Path) -> Path:
    """A BLIP-2 or InstructBLIP whose weights lie in several files."""
    configuration, model = BLIPS[kind]
    torch.manual_seed(1)
    config = configuration(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=T5,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    made = model(config)
    made.query_tokens.data.normal_()
    made.save_pretrained(folder, max_shard_size="30KB")
    words = word_tokenizer(DESCRIBE.split())
    words.save_pretrained(folder)
    if kind == "instruct_blip":
        words.save_pretrained(folder / "qformer_tokenizer")
    return folder


WORDS = ["a", "face", "the", "brow", "is", "raised", "and", "jaw", "dropped"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}


def text_encoder(folder: Path) -> Path:
    """A small BERT that knows a few words."""
    return stored(BertModel, BertConfig(**SIZES), folder)


def stored(kind: Any, config: Any, folder: Path) -> Path:
    """A random model in a folder, with a tokenizer of a few words that names no longest text."""
    torch.manual_seed(1)
    kind(config).save_pretrained(folder)
    words = word_tokenizer(WORDS)
    words.model_max_length = 10**30
    words.save_pretrained(folder)
    return folder
