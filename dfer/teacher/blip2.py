"""BLIP-2 and InstructBLIP with a Flan-T5 as teachers (Li et al., ICML 2023; Dai et al., NeurIPS 2023), as Exp-CLIP uses
BLIP-2 (Zhao et al., WACV 2025, section 3.1): the modules are called one by one, without the processor.

Letters: B pictures, C colours, H height, W width, P patches, Q query tokens, L tokens of the instruction, D features.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfer.errors import CheckpointError, UsageError, message
from dfer.teacher.config import Blip2TeacherConfig, InstructBlipTeacherConfig
from dfer.teacher.files import QFORMER_TOKENIZER, origin_of
from dfer.teacher.pretrained import DTYPES, commit_of, config_of, encoded, from_pretrained, place_of, tokenizer_of
from dfer.teacher.teacher import Teacher

EXACT = ("query_tokens", "qformer", "language_projection")
"""Parts of the model that stay in fp32."""


class BlipTeacher(Teacher):
    """The mean over query and instruction tokens of the T5 encoder's last hidden state, after its last norm and before
    its last dropout. Pictures are scaled to 0..1, not normalised.

    The Q-Former, its queries and the projection to the language model are read and compute in fp32, the vision model
    and T5 in `precision`; the mean is taken in `precision`, too.
    """

    def __init__(self, config: Blip2TeacherConfig | InstructBlipTeacherConfig, device: torch.device) -> None:
        super().__init__()
        self.config = config
        config_of(config.model, config.revision)
        self.commit = commit_of(config.model, config.revision)
        self.model = _loaded(config, self.commit or config.revision, device)
        self.dim = int(self.model.config.text_config.d_model)
        self.image_size = int(self.model.config.vision_config.image_size)
        self.origin = origin_of(config, self.commit)
        self.requires_grad_(False)
        self.train(False)
        self._device = device
        self.ask(config.instruction)
        self._last: Tensor | None = None
        self._encoder = self.model.language_model.get_encoder()
        self._encoder.final_layer_norm.register_forward_hook(self._keep)

    def ask(self, instruction: str) -> None:
        """Take another instruction. Raises CheckpointError if the tokenizers do not know it."""
        self.config = replace(self.config, instruction=instruction)
        self._instruction = self._tokens("", self.model.config.text_config)
        self._question = self._tokens(QFORMER_TOKENIZER, self.model.config.qformer_config) if self._instructs else None

    @property
    def _instructs(self) -> bool:
        return isinstance(self.config, InstructBlipTeacherConfig)

    def _tokens(self, subfolder: str, reader: Any) -> Tensor:
        """Encode the instruction, int64 [1 L], with the closing token.

        reader: configuration of the model that reads it; BERT's, the Q-Former's, names no closing token, which is then
        the tokenizer's. Raises CheckpointError.
        """
        config = self.config
        tokenizer = tokenizer_of(config.model, self.commit or config.revision, subfolder=subfolder)
        where = f"{place_of(config.model)}/{subfolder}".rstrip("/")
        own = (getattr(reader, "eos_token_id", None), tokenizer.sep_token_id, tokenizer.eos_token_id)
        end = next((number for number in own if number is not None), None)
        tokens = encoded(tokenizer, config.instruction, size=reader.vocab_size, where=where, end=end)
        return tokens.to(self._device)

    def train(self, mode: bool = True) -> "BlipTeacher":
        """Ignore `mode`: everything stays in evaluation mode, but for Q-Former and T5 with `teacher.dropout`."""
        super().train(False)
        if self.config.dropout:
            self.model.qformer.train()
            self.model.language_model.train()
        return self

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._last = output

    @torch.no_grad()
    def forward(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute features, fp32 [B D], of uint8 pictures [B C H W]; `texts` is not read.

        Raises:
            UsageError: the pictures do not have the size of the vision model.
        """
        self._check_size(pictures)
        queries = self.model.language_projection(self._queries(pictures))
        embedding = self.model.get_input_embeddings()
        words = embedding(self._instruction.to(embedding.weight.device)).expand(len(pictures), -1, -1)
        tokens = torch.cat([queries.to(words.device, words.dtype), words], dim=1)
        self._encoder(inputs_embeds=tokens, attention_mask=torch.ones(tokens.shape[:2], device=tokens.device).long())
        assert self._last is not None, "the hook has seen the last norm"
        last, self._last = self._last, None
        return last.mean(dim=1).float().to(self._device)

    def _queries(self, pictures: Tensor) -> Tensor:
        """Compute the Q-Former's answers [B Q width] to a batch of pictures."""
        model = self.model
        scaled = pictures.to(self._device).float() / 255
        patches = model.vision_model(pixel_values=scaled.to(model.vision_model.dtype)).last_hidden_state
        query = model.query_tokens.expand(len(pictures), -1, -1)
        patches = patches.to(query.device, query.dtype)
        seen = torch.ones(patches.shape[:2], dtype=torch.int64, device=patches.device)
        asked: dict[str, Tensor] = {}
        if self._question is not None:
            ids = self._question.to(query.device).expand(len(pictures), -1)
            mask = torch.ones(len(ids), query.shape[1] + ids.shape[1], dtype=torch.int64, device=ids.device)
            asked = {"input_ids": ids, "attention_mask": mask}
        out = model.qformer(query_embeds=query, encoder_hidden_states=patches, encoder_attention_mask=seen, **asked)
        found: Tensor = out.last_hidden_state[:, : query.shape[1]]
        return found

    def _check_size(self, pictures: Tensor) -> None:
        height, width = pictures.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            expected, got = f"{self.image_size} x {self.image_size} pixels, as the teacher takes", f"{height} x {width}"
            do = f"Set pairs.size={self.image_size}, or choose another teacher."
            raise UsageError(message("pictures", expected=expected, got=got, do=do))


def _loaded(config: Blip2TeacherConfig | InstructBlipTeacherConfig, revision: str | None, device: torch.device) -> Any:
    """Load the model in evaluation mode. Raises CheckpointError."""
    from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

    kinds = {"blip2": Blip2ForConditionalGeneration, "instruct_blip": InstructBlipForConditionalGeneration}
    options: dict[str, Any] = {"dtype": DTYPES[config.precision]}
    if config.devices == "all":
        options["device_map"] = "auto"
    model = from_pretrained(kinds[config.name], config.model, revision, exact=EXACT, **options)
    if not model.config.text_config.is_encoder_decoder:
        got, do = str(model.config.text_config.model_type), "Give a model with Flan-T5, such as *-flan-t5-xl."
        expected = "a language model with an encoder, T5"
        raise CheckpointError(message(config.model, expected=expected, got=got, do=do))
    return model if config.devices == "all" else model.to(device)
