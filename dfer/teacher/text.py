"""A text encoder as teacher: it reads the description of each picture.

Letters: B pictures, L tokens, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfer.teacher.config import TextTeacherConfig
from dfer.teacher.pretrained import DTYPES, from_pretrained, tokenizer_of
from dfer.teacher.teacher import Teacher


class TextTeacher(Teacher):
    """The mean of the last hidden state over the tokens of a description. Each description is encoded alone, so that
    its feature does not depend on the others of a batch."""

    reads_text = True

    def __init__(self, config: TextTeacherConfig, device: torch.device) -> None:
        super().__init__()
        from transformers import AutoModel

        self.config = config
        dtype = DTYPES[config.precision]
        self.model = from_pretrained(AutoModel, config.model, config.revision, dtype=dtype).to(device)
        self._tokenizer = tokenizer_of(config.model, config.revision)
        self.dim, self.origin = int(self.model.config.hidden_size), config.model
        self._known: dict[str, Tensor] = {}
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "TextTeacher":
        """Ignore `mode`: evaluation mode, but for `teacher.dropout`."""
        super().train(False)
        if self.config.dropout:
            self.model.train()
        return self

    def forward(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute features, fp32 [B D]."""
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
        most = min(getattr(self._tokenizer, "model_max_length", 512), self.model.config.max_position_embeddings)
        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=most)
        ids = tokens["input_ids"].to(next(self.model.parameters()).device)
        hidden: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[0].mean(dim=0).float()
