"""A text encoder as teacher: it reads the description of each picture.

Letters: B pictures, L tokens, D features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfer.errors import CheckpointError, DataError, message
from dfer.teacher.config import TextTeacherConfig
from dfer.teacher.files import origin_of
from dfer.teacher.pretrained import DTYPES, commit_of, config_of, encoded, from_pretrained, place_of, tokenizer_of
from dfer.teacher.teacher import Teacher

LONGEST = 512
"""Most tokens of a description for an encoder that names no limit, such as T5."""
ENDLESS = 10**6
"""Tokenizers say "no limit" by a larger number."""
PROBE = "a face"


class TextTeacher(Teacher):
    """The mean of the last hidden state over the tokens of a description. Each description is encoded alone, so that
    its feature does not depend on the others of a batch. A longer description than the encoder takes is cut."""

    reads_text = True

    def __init__(self, config: TextTeacherConfig, device: torch.device) -> None:
        """Raises CheckpointError."""
        super().__init__()
        self.config = config
        settings = config_of(config.model, config.revision)
        self.commit = commit_of(config.model, config.revision)
        revision = self.commit or config.revision
        self.model = _encoder(config, settings, revision).to(device)
        self._tokenizer = tokenizer_of(config.model, revision)
        self._longest = _longest(self.model, self._tokenizer)
        self.origin = origin_of(config, self.commit)
        self._known: dict[str, Tensor] = {}
        self.requires_grad_(False)
        super().train(False)
        self.dim = self._probe()
        self.train(False)

    def _probe(self) -> int:
        """Return the width of a feature. Raises CheckpointError if the model gives none for a few words."""
        place = place_of(self.config.model)
        try:
            size = int(self.model.get_input_embeddings().num_embeddings)
            encoded(self._tokenizer, PROBE, size=size, where=place)
            (width,) = self._encoded(PROBE).shape
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            got, do = str(error).split("\n", 1)[0][:200], "Give a text encoder, such as a BERT or T5."
            expected = "a model that gives hidden states of token numbers"
            raise CheckpointError(message(place, expected=expected, got=got, do=do)) from error
        return int(width)

    def train(self, mode: bool = True) -> "TextTeacher":
        """Ignore `mode`: evaluation mode, but for `teacher.dropout`."""
        super().train(False)
        if self.config.dropout:
            self.model.train()
        return self

    def forward(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute features, fp32 [B D]. Raises DataError if the tokenizer finds nothing in a description."""
        return torch.stack([self._feature(text) for text in texts]).to(pictures.device)

    def _feature(self, text: str) -> Tensor:
        """Compute the feature [D] of a description, or take it from memory: descriptions repeat."""
        if self.config.dropout or len(self._known) > 2**16:
            return self._encoded(text)
        if text not in self._known:
            self._known[text] = self._encoded(text)
        return self._known[text]

    @torch.no_grad()
    def _encoded(self, text: str) -> Tensor:
        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._longest)
        if not tokens["input_ids"].numel():
            do = "Correct the description."
            raise DataError(message(f"description {text[:40]!r}", expected="words", got="no tokens", do=do))
        ids = tokens["input_ids"].long().to(next(self.model.parameters()).device)
        hidden: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[0].mean(dim=0).float()


def _encoder(config: TextTeacherConfig, settings: Any, revision: str | None) -> Any:
    """Load the encoder alone of a text model, without its pooler. Raises CheckpointError."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    kind = AutoModelForTextEncoding if type(settings) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    model = from_pretrained(kind, config.model, revision, unused="pooler.", dtype=DTYPES[config.precision])
    whole = kind is AutoModel and getattr(model.config, "is_encoder_decoder", False)
    return model.get_encoder() if whole else model


def _longest(model: nn.Module, tokenizer: Any) -> int:
    """Return the most tokens that an encoder and its tokenizer take.

    RoBERTa and its kin number positions from one past the padding token, so that the table has rows for fewer tokens.
    """
    places = getattr(model.config, "max_position_embeddings", None) or 0
    tables = [each for name, each in model.named_modules() if name.endswith("position_embeddings")]
    skipped = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    places -= max(skipped, default=-1) + 1
    limits = [limit for limit in (places, tokenizer.model_max_length) if 0 < limit < ENDLESS]
    return min(limits, default=LONGEST)
