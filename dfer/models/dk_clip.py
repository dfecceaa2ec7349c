"""DK-CLIP (Li et al., ACM MM 2024): CLIP with messages between the frames of snippets, class texts with action units
that are enhanced by what the clip shows, and predictions from the clip (global) and from its snippets (local).

Letters: B clips, T frames = S snippets of N frames, C colours, H height, W width, P patches, M width of a patch token,
D embedding, K classes.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import Emotions
from dfer.errors import UsageError, message
from dfer.models.config_dk_clip import DkClipConfig, check_frames
from dfer.models.cross_frame import CrossFrameEncoder, SnippetEncoder
from dfer.models.layers import IMAGENET_MEAN, IMAGENET_STD
from dfer.models.losses import cross_entropy
from dfer.models.prompts import layout
from dfer.models.snippets import (
    PromptGenerator,
    SnippetIntegration,
    VisualTokens,
    agreement,
    mean_of_kept,
    weigh,
)
from dfer.models.texts import class_texts
from dfer.models.towers import Towers, tokenize
from dfer.recognition import PADDING, ClipBatch, Group, Progress, Recognition, Recognizer


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the encoders make of a batch. clip: [B D]. snippets: [B S D]. patches: [B S P D]. None is normalised."""

    clip: Tensor
    snippets: Tensor
    patches: Tensor


class DkClip(Recognizer):
    """Classifies by the cosine similarity of the clip's feature and class texts enhanced by the clip's patches."""

    def __init__(self, config: DkClipConfig, *, towers: Towers, emotions: Emotions, num_frames: int) -> None:
        """Raises ConfigProblem when frames, texts or architecture do not fit."""
        super().__init__()
        check_frames(num_frames, config.snippet)
        self.config, self.num_frames = config, num_frames
        self.semantic = SnippetEncoder(towers.visual, init=config.second_encoder)
        encoder = CrossFrameEncoder(towers.visual)
        towers.visual, dim, width = encoder, towers.embed_dim, encoder.proj.shape[0]
        self.towers = towers
        self.integration = SnippetIntegration(dim, snippets=num_frames // config.snippet)
        self.visual_tokens = VisualTokens(width, dim)
        self.prompts = PromptGenerator(dim, layers=config.prompt_layers, alpha=config.prompt_alpha)
        if config.train == "released":
            self.semantic.requires_grad_(False)
            self.integration.requires_grad_(False)
        self._register_constants(class_texts(emotions, config.text))

    def _register_constants(self, texts: list[str]) -> None:
        """Register what is derived from the configuration, and so not stored with the weights."""
        length = self.towers.context_length
        _check_texts(texts, length)
        placed = layout(texts, num_contexts=0, position="end", context_length=length)
        self.tokens: Tensor
        self.eos: Tensor
        self.mean: Tensor
        self.std: Tensor
        self._text: Tensor | None
        self.register_buffer("tokens", placed.tokens, persistent=False)
        self.register_buffer("eos", placed.eos, persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)
        self.register_buffer("_text", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget_text)  # type: ignore[no-untyped-call]

    @property
    def image(self) -> CrossFrameEncoder:
        """The first encoder, in the place of CLIP's image tower."""
        assert isinstance(self.towers.visual, CrossFrameEncoder)
        return self.towers.visual

    @property
    def normalisation(self) -> str:
        """ImageNet's, although the towers were trained with CLIP's."""
        return "ImageNet's mean and deviation"

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the frames."""
        return self.towers.image_size

    def forward(self, batch: ClipBatch) -> Recognition:
        """Compute global logits [B K] in fp32 of uint8 frames [B T C H W].

        variants: `local`, the sum of the snippets' weighted logits; `fused`, the mean of both predictions as
        log-probabilities. aux: `snippets` [B S K], logits of each snippet, 0 for erased ones; `weights` [B S]; `kept`
        [B S].
        """
        seen = self.encode_video(batch.frames)
        with torch.autocast(batch.frames.device.type, enabled=False):
            clip, snippets = F.normalize(seen.clip.float(), dim=-1), F.normalize(seen.snippets.float(), dim=-1)
            weights, kept = weigh(clip, snippets, erase_below=self.config.erase_below)
        enhanced = self.prompts(self.encode_text(), mean_of_kept(seen.patches, kept))
        with torch.autocast(batch.frames.device.type, enabled=False):
            texts = F.normalize(enhanced.float(), dim=-1) / self.config.temperature
            whole = torch.einsum("bd,bkd->bk", clip, texts)
            each = torch.einsum("bsd,bkd->bsk", snippets, texts) * (weights * kept)[..., None]
            local = each.sum(dim=1)
            fused = torch.stack([whole, local]).log_softmax(dim=-1).logsumexp(dim=0) - math.log(2)
        aux = {"snippets": each, "weights": weights, "kept": kept}
        return Recognition(logits=whole, variants={"local": local, "fused": fused}, aux=aux)

    def encode_video(self, frames: Tensor) -> Seen:
        """Encode uint8 frames [B T C H W]."""
        self._check(frames)
        length, dtype = self.config.snippet, self.image.class_embedding.dtype
        pictures = (rearrange(frames, "b t c h w -> (b t) c h w").to(dtype) / 255 - self.mean) / self.std
        features, patches = self.image(pictures, length)
        snippets = rearrange(features, "(b s n) d -> b s n d", b=len(frames), n=length).mean(dim=2)
        of_snippets = rearrange(patches, "(v n) p m -> v n p m", n=length).mean(dim=1)
        tokens = self.visual_tokens(self.semantic(of_snippets, frames.shape[1] // length))
        return Seen(
            clip=self.integration(snippets),
            snippets=snippets,
            patches=rearrange(tokens, "(b s) p d -> b s p d", b=len(frames)),
        )

    @torch.no_grad()
    def encode_text(self) -> Tensor:
        """Return the class texts' features [K D], not normalised; computed once, in fp32: the text tower is frozen."""
        if self._text is None:
            with torch.autocast(self.tokens.device.type, enabled=False):
                self._text = self.towers.encode_prompts(self.towers.embed(self.tokens), self.eos)
        return self._text

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the cross entropy of the global logits and, in the epochs of the schedule, that of the local logits
        and their agreement with the global prediction.

        Every trained parameter acts on the global logits, so each gets a gradient in every epoch: both encoders'
        messages, the second encoder through the enhanced texts, and the integration through the clip's feature.
        """
        terms = {"global": cross_entropy(out.logits, batch)}
        options = self.config.losses
        if options.all_terms(progress.epoch):
            local, counts = out.variants["local"], batch.index != PADDING
            each = agreement(local, out.logits, detached=options.detached_target, log_input=options.log_softmax_input)
            terms["local"] = cross_entropy(local, batch)
            terms["agreement"] = (each * counts).sum() / counts.sum().clamp(min=1)
        return terms

    def param_groups(self) -> dict[str, Group]:
        """Return the groups `image` and `semantic`, the encoders without messages; `messages` of both; `integration`;
        `prompts`. A frozen part has no group."""
        encoders = [*self.image.named_parameters(), *self.semantic.named_parameters()]
        parts = {
            "image": [p for name, p in self.image.named_parameters() if MESSAGE not in name],
            "semantic": [p for name, p in self.semantic.named_parameters() if MESSAGE not in name],
            "messages": [p for name, p in encoders if MESSAGE in name],
            "integration": [*self.integration.parameters()],
            "prompts": [*self.visual_tokens.parameters(), *self.prompts.parameters()],
        }
        positions = (
            self.image.positional_embedding,
            self.semantic.positional_embedding,
            self.integration.positions,
        )
        trained = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
        return {name: Group(params=params, spared=positions) for name, params in trained.items() if params}

    def _check(self, frames: Tensor) -> None:
        size, (height, width) = self.image_size, frames.shape[-2:]
        if (height, width) != (size, size):
            expected, got = f"{size} x {size} pixels, as the image tower takes them", f"{height} x {width}"
            do = f"Set data.size={size} or model.towers.image_size={height}."
            raise UsageError(message("frames", expected=expected, got=got, do=do))
        if frames.shape[1] > self.num_frames:
            do = f"Set data.frames={self.num_frames}, or train with more frames."
            expected = f"at most {self.num_frames} a clip"
            raise UsageError(message("frames", expected=expected, got=str(frames.shape[1]), do=do))
        if frames.shape[1] % self.config.snippet:
            do = f"Set data.frames to a multiple of {self.config.snippet}, or train with another model.snippet."
            expected = f"whole snippets of {self.config.snippet} frames"
            raise UsageError(message("frames", expected=expected, got=str(frames.shape[1]), do=do))


MESSAGE = "message_"
"""Part of the names of the messages' parameters."""


def _forget_text(model: nn.Module, _: object) -> None:
    """Forget the class texts' features: loaded weights may have another text tower."""
    assert isinstance(model, DkClip)
    model._text = None


def _check_texts(texts: list[str], context_length: int) -> None:
    longest = max(texts, key=lambda text: len(tokenize([text])[0]))
    length = len(tokenize([longest])[0]) + 2
    if length > context_length:
        expected, got = f"texts of at most {context_length - 2} tokens", f"{length - 2} in {longest[:60]!r}..."
        do = "Shorten that text, or choose another model.text."
        raise ConfigProblem(message("model.text", expected=expected, got=got, do=do))
