"""BLIP-2 and InstructBLIP with a Flan-T5 as teachers (Li et al., ICML 2023; Dai et al., NeurIPS 2023), as Exp-CLIP uses
BLIP-2 (Zhao et al., WACV 2025, section 3.1): the modules are called one by one, without the processor.

Letters: B pictures, C colours, H height, W width, P patches, Q query tokens, L tokens of the instruction, D features.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfer.errors import CheckpointError, UsageError, message
from dfer.teacher.config import Blip2TeacherConfig, InstructBlipTeacherConfig
from dfer.teacher.files import folder_of
from dfer.teacher.teacher import Teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class BlipTeacher(Teacher):
    """The mean over query and instruction tokens of the T5 encoder's last hidden state, after its last norm and before
    its last dropout. Pictures are scaled to 0..1, not normalised.

    The Q-Former and the projection to the language model compute in fp32, the vision model and T5 in `precision`; the
    mean is taken in `precision`, too.
    """

    def __init__(self, config: Blip2TeacherConfig | InstructBlipTeacherConfig, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.model = _loaded(config, device)
        self.model.language_projection.float()
        self.dim = int(self.model.config.text_config.d_model)
        self.image_size = int(self.model.config.vision_config.image_size)
        self.origin = f"{config.model}, revision {config.revision or 'main'}"
        self.requires_grad_(False)
        self.train(False)
        self._device = device
        self._instruction = _tokens(config, device, subfolder="")
        self._question = _tokens(config, device, subfolder="qformer_tokenizer") if self._instructs else None
        self._last: Tensor | None = None
        self._encoder = self.model.language_model.get_encoder()
        self._encoder.final_layer_norm.register_forward_hook(self._keep)

    @property
    def _instructs(self) -> bool:
        return isinstance(self.config, InstructBlipTeacherConfig)

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
        queries = self.model.language_projection(self._queries(pictures).float())
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


def _loaded(config: Blip2TeacherConfig | InstructBlipTeacherConfig, device: torch.device) -> Any:
    """Load the model in evaluation mode. Raises CheckpointError, UsageError."""
    from transformers import Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration

    kinds = {"blip2": Blip2ForConditionalGeneration, "instruct_blip": InstructBlipForConditionalGeneration}
    options = loading(config.model, config.revision) | {"dtype": DTYPES[config.precision]}
    if config.devices == "all":
        _require_accelerate()
        options["device_map"] = "auto"
    model = from_pretrained(kinds[config.name], config.model, options)
    if not model.config.text_config.is_encoder_decoder:
        got, do = str(model.config.text_config.model_type), "Give a model with Flan-T5, such as *-flan-t5-xl."
        expected = "a language model with an encoder, T5"
        raise CheckpointError(message(config.model, expected=expected, got=got, do=do))
    return model if config.devices == "all" else model.to(device)


def loading(model: str, revision: str | None) -> dict[str, Any]:
    """Options of transformers' loading: safetensors alone, no code of the model's, no download where that is off."""
    local = folder_of(model) is not None or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return {
        "local_files_only": local,
        "revision": revision or "main",
        "trust_remote_code": False,
        "use_safetensors": True,
    }


def from_pretrained(kind: Any, model: str, options: dict[str, Any]) -> Any:
    """Load a model of transformers and refuse one that lacks weights. Raises CheckpointError."""
    place = str(folder_of(model) or model)
    try:
        found, told = kind.from_pretrained(place, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        do = "Correct teacher.model; for a name on a hub, download it first or go online."
        got = str(error).split("\n", 1)[0][:200]
        raise CheckpointError(message(place, expected="a model of transformers", got=got, do=do)) from error
    missing = sorted(told.get("missing_keys") or ())
    if missing:
        got, do = f"none for {len(missing)} ({', '.join(missing[:3])})", "Copy or download the model again."
        raise CheckpointError(message(place, expected="weights of the whole model", got=got, do=do))
    return found.eval()


def _require_accelerate() -> None:
    try:
        import accelerate  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        do = "Install it: pip install accelerate; or set teacher.devices=one."
        raise UsageError(message("teacher.devices=all", expected="accelerate", got="none", do=do)) from None


def _tokens(config: Blip2TeacherConfig | InstructBlipTeacherConfig, device: torch.device, *, subfolder: str) -> Tensor:
    """Encode the instruction, int64 [1 L], with the closing token of the tokenizer."""
    from transformers import AutoTokenizer

    options = loading(config.model, config.revision)
    options.pop("use_safetensors")
    place = str(folder_of(config.model) or config.model)
    tokenizer = AutoTokenizer.from_pretrained(place, subfolder=subfolder, **options)
    return torch.tensor([tokenizer(config.instruction)["input_ids"]], dtype=torch.int64, device=device)
