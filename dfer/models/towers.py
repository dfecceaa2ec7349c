"""CLIP's two towers, built by open_clip; this is the only module that imports it.

Letters: N pictures (or clips of T frames), C colours, H height, W width of a picture (of a token in text), D embedding,
K prompts, L tokens.
"""

import functools
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError, did_you_mean, message
from dfer.models import conv
from dfer.models.config_towers import TowersConfig
from dfer.models.files import twin
from dfer.models.foreign.architecture import activation_beside, read_architecture
from dfer.models.foreign.layouts import foreign_names
from dfer.models.foreign.weights import Weights, read_weights
from dfer.models.layers import PatchEmbedding, QuickGelu, SelfAttention
from dfer.recognition import ClipBatch
from dfer.surroundings import hidden

with hidden("transformers"):  # open_clip would import it where it is installed, seconds of every process, for no use
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN as OPENAI_DATASET_MEAN
    from open_clip.constants import OPENAI_DATASET_STD as OPENAI_DATASET_STD
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, resize_pos_embed
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer

VOCABULARY = 49408
"""Number of tokens of CLIP's byte-pair encoding, the only tokenizer supported."""

# Not loaded: entries that describe the file, and the temperature, which the methods set themselves.
NOT_NEEDED = ("input_resolution", "context_length", "vocab_size", "logit_scale", "logit_bias", "attn_mask")

MEAN, STD = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
"""Of each colour, with which CLIP normalises pictures scaled to 0..1."""

OPENAI_ONLY = ("input_resolution", "context_length")
"""Names that identify a file of OpenAI's; open_clip writes none of them."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ACTIVATIONS = {True: "OpenAI's quick GELU", False: "the exact GELU"}


class TextTower(nn.Module):
    """CLIP's causal text transformer. Frozen. Takes token embeddings, so that prompts can be learned."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.token_embedding: nn.Embedding = clip.token_embedding
        self.positional_embedding: nn.Parameter = clip.positional_embedding
        self.transformer: nn.Module = clip.transformer
        self.ln_final: nn.Module = clip.ln_final
        self.text_projection: nn.Parameter = clip.text_projection
        self.attn_mask: Tensor
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)
        self.requires_grad_(False)

    def forward(self, prompts: Tensor, eos: Tensor) -> Tensor:
        """Compute features [K D] at position eos [K] of prompts [K L W]; L may be shorter than the tower's context."""
        length = prompts.shape[1]
        x = prompts + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        at_eos = x[torch.arange(len(x), device=x.device), eos]
        return typing.cast(Tensor, self.ln_final(at_eos) @ self.text_projection)


def _clip(config: TowersConfig) -> tuple[CLIP, dict[str, Any], str | None]:
    """Build open_clip's model, load its weights and replace layers by faster ones. Returns the model; its settings; and
    the origin and activation of the weights in words, None for random weights."""
    settings = clip_settings(config)
    clip = built_clip(settings, config.arch)
    origin = None
    if config.pretrained is not None:
        weights, origin = _pretrained(config.arch, config.pretrained, quick=settings["quick_gelu"])
        load_clip(clip, weights, where=config.pretrained, resize=config.image_size)
    _speed_up(clip)
    return clip, settings, origin


FEATURE = "frames"
"""Name of the frozen tower's output."""


class ImageTower(nn.Module):
    """A frozen image tower, always in evaluation mode and without gradients."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        clip, settings, self.origin = _clip(config)
        self.visual: nn.Module = clip.visual
        self.embed_dim: int = settings["embed_dim"]
        self.image_size: int = settings["vision_cfg"]["image_size"]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ImageTower":
        """Ignore `mode` and stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, pictures: Tensor, *, normalise: bool) -> Tensor:
        """Compute features [N D] of uint8 pictures [N C H W]. normalise: the pictures, by CLIP's mean and deviation;
        the features are not normalised."""
        x = pictures.to(next(self.visual.parameters()).dtype) / 255
        return typing.cast(Tensor, self.visual((x - self.mean) / self.std if normalise else x))

    def features(self, batch: ClipBatch, *, normalise: bool) -> dict[str, Tensor]:
        """Compute the features of a batch's frames, by name: float [N T D] for N clips of T frames."""
        pictures = rearrange(batch.frames, "n t c h w -> (n t) c h w")
        found = self.encode(pictures, normalise=normalise)
        return {FEATURE: rearrange(found, "(n t) d -> n t d", n=len(batch.frames))}


class Towers(nn.Module):
    """Image tower and text tower with a common embedding of width `embed_dim`."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        clip, settings, self.origin = _clip(config)
        self.visual: nn.Module = clip.visual
        self.text = TextTower(clip)
        self.arch = config.arch
        self.quick_gelu: bool = settings["quick_gelu"]
        self.embed_dim: int = settings["embed_dim"]
        self.image_size: int = settings["vision_cfg"]["image_size"]
        self.context_length: int = clip.context_length

    @property
    def text_width(self) -> int:
        """Width W of a token."""
        return self.text.token_embedding.embedding_dim

    def train(self, mode: bool = True) -> "Towers":
        """Set the mode, but keep batch norm in evaluation mode: its batch statistics would make the answer depend on
        how ranks divide a batch."""
        super().train(mode)
        for module in self.visual.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Compute projected features [N D], not normalised, of pictures [N C H W] scaled as the method defines."""
        return typing.cast(Tensor, self.visual(frames))

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up the token embeddings [K L W] of int64 tokens [K L]."""
        return typing.cast(Tensor, self.text.token_embedding(tokens))

    def encode_prompts(self, prompts: Tensor, eos: Tensor) -> Tensor:
        """Compute text features [K D], not normalised, of prompts [K L W] that end at eos [K]."""
        return typing.cast(Tensor, self.text(prompts, eos))


def tokenize(texts: list[str]) -> list[list[int]]:
    """Encode each text into byte-pair tokens, without start and end."""
    return [list(_tokenizer().encode(text)) for text in texts]


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


START_TOKEN = VOCABULARY - 2
END_TOKEN = VOCABULARY - 1


def load_clip(clip: nn.Module, weights: Weights, *, where: object, resize: int | None = None) -> None:
    """Load a CLIP state dict into `clip`; it must contain both towers. From the weights of a run of this project, only
    those of the towers are taken. resize: new image size in pixels, for which the position embeddings are interpolated.

    Raises:
        CheckpointError: names or shapes differ; the message gives the first ones.
    """
    of_run = {name: value for name, value in weights.items() if name.startswith("towers.")}
    weights = {_plain_name(name): value for name, value in (of_run or weights).items()}
    weights = {name: value.float() for name, value in weights.items() if name not in NOT_NEEDED}
    if resize is not None:
        _check_positions(weights.get("visual.positional_embedding"), where=where)
        resize_pos_embed(weights, clip)
    own = {name: value for name, value in clip.state_dict().items() if name not in NOT_NEEDED}
    if not weights.keys() & own.keys():
        got, do = f"names such as {', '.join(list(weights)[:3])}", "Give a CLIP as OpenAI or open_clip publishes it."
        raise CheckpointError(message(where, expected=f"names such as {', '.join(list(own)[:3])}", got=got, do=do))
    check_names(weights, own, where=where, do="Set `arch` to the architecture of this file.")
    clip.load_state_dict(weights, strict=False)


def _check_positions(positions: Tensor | None, *, where: object) -> None:
    """Raise CheckpointError unless the positions are a square of patches plus one token, which can be resized."""
    if positions is None:
        return
    side = math.isqrt(max(len(positions) - 1, 0)) if positions.dim() == 2 else 0
    if not side or side**2 + 1 != len(positions):
        got = f"visual.positional_embedding of {tuple(positions.shape)}"
        do = "Leave model.towers.image_size out."
        raise CheckpointError(message(where, expected="positions of a square of patches", got=got, do=do))


def _plain_name(name: str) -> str:
    """Remove `towers.` of this project's runs, and `text.`, which these and open_clip's custom-text layout have."""
    return name.removeprefix("towers.").removeprefix("text.")


def check_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, where: object, do: str) -> None:
    """Raise CheckpointError unless both hold the same names with the same shapes."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in own.items()}
    wrong = [f"no {name}" for name in expected if name not in shapes]
    wrong += [f"unknown {name}" for name in shapes if name not in expected]
    wrong += [
        f"{name} {shapes[name]} instead of {expected[name]}"
        for name in expected
        if shapes.get(name, expected[name]) != expected[name]
    ]
    if wrong:
        got = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise CheckpointError(message(where, expected=f"{len(expected)} tensors that fit the model", got=got, do=do))


def built_clip(settings: dict[str, Any], arch: str) -> CLIP:
    """Build the model with random weights. Raises ConfigProblem for settings that do not fit together."""
    try:
        return CLIP(**settings, nonscalar_logit_scale=True)  # DeepSpeed does not support 0-dimensional parameters
    except (ArithmeticError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        got = f"{arch} ({type(error).__name__}: {str(error)[:200]})"
        do = "Check towers.arch; see dfer/models/configs for examples."
        raise ConfigProblem(message("towers.arch", expected="sizes that go together", got=got, do=do)) from error


def context_length(config: TowersConfig) -> int:
    """Return the number of tokens that the text tower takes."""
    return int(clip_settings(config)["text_cfg"].get("context_length", CLIPTextCfg.context_length))


def clip_settings(config: TowersConfig, *, model: str = "model") -> dict[str, Any]:
    """Return the arguments of open_clip's CLIP, with the configured image size and activation.

    model: key above `towers`, for the message. Raises ConfigProblem for an architecture that cannot be used.
    """
    settings = _architecture(config.arch, where=f"{model}.towers.arch")
    vision, text = dict(settings["vision_cfg"]), dict(settings["text_cfg"])
    if config.image_size is not None:
        vision["image_size"] = config.image_size
    vision.setdefault("image_size", 224)
    vision["timm_model_pretrained"] = False
    timm = vision.get("timm_model_name")
    if config.arch.endswith(".json") and timm not in (None, conv.NAME):  # timm would look up other names on a hub
        raise ConfigProblem(
            message(config.arch, expected=f"no timm_model_name but {conv.NAME}", got=repr(timm), do="Leave it out.")
        )
    if timm == conv.NAME and vision["image_size"] != conv.IMAGE_SIZE:
        where, do = f"{model}.towers.image_size", "Leave it out, or use another architecture."
        expected, got = f"{conv.IMAGE_SIZE} for {config.arch}", str(vision["image_size"])
        raise ConfigProblem(message(where, expected=expected, got=got, do=do))
    other = [key for key in ("no_causal_mask", "hf_model_name", "embed_cls", "proj_bias") if text.get(key)]
    if other or text.get("pool_type", "argmax") != "argmax" or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        where, do = f"{model}.towers.arch", "Take another architecture, such as ViT-B-32-quickgelu."
        expected = "a causal text tower with CLIP's vocabulary that pools at the end token"
        raise ConfigProblem(message(where, expected=expected, got=repr(config.arch), do=do))
    quick = bool(settings.get("quick_gelu", False))
    return {"embed_dim": settings["embed_dim"], "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}


def _pretrained(arch: str, pretrained: str, *, quick: bool) -> tuple[Weights, str]:
    """Read the weights of a local file or of one of open_clip's tags, and check that they were trained with the
    activation of `arch`. Returns the weights, and in words how the activation is known."""
    where = f"model.towers.pretrained={pretrained}"
    if name := _trained_as(arch, pretrained):
        trained = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
        check_activation(arch, quick=quick, trained=trained, where=where)
        return read_weights(_download(name, pretrained)), f"{where}: {ACTIVATIONS[quick]}, as open_clip lists the tag"
    weights = read_weights(Path(pretrained))
    if found := foreign_names(weights):
        got, do = found
        raise CheckpointError(message(where, expected="a CLIP in OpenAI's or open_clip's names", got=got, do=do))
    return weights, f"{where}: {_activation_of(weights, arch, pretrained, quick=quick)}"


def _activation_of(weights: Weights, arch: str, pretrained: str, *, quick: bool) -> str:
    """Return in words the activation of a file's weights and how it is known. Raises ConfigProblem when the weights
    are known to be trained with the other activation."""
    where = f"model.towers.pretrained={pretrained}"
    if any(name in weights for name in OPENAI_ONLY):
        check_activation(arch, quick=quick, trained=True, where=where)
        return f"{ACTIVATIONS[quick]}, as all of OpenAI's files"
    if beside := activation_beside(Path(pretrained)):
        path, trained = beside
        check_activation(arch, quick=quick, trained=trained, where=f"{where} ({path.name} beside it)")
        return f"{ACTIVATIONS[quick]}, as {path} says"
    return (
        f"{ACTIVATIONS[quick]}, as model.towers.arch={arch} has it; the file cannot confirm it, and weights trained "
        "with the other one give wrong features. Compare with the page it came from"
    )


def _trained_as(arch: str, pretrained: str) -> str:
    """Return the architecture for which open_clip has weights of this tag; empty for a file."""
    names = () if Path(pretrained).is_file() else (arch, twin(arch))
    return next((name for name in names if pretrained in open_clip.list_pretrained_tags_by_model(name)), "")


def check_activation(arch: str, *, quick: bool, trained: bool, where: object) -> None:
    """Raise ConfigProblem unless `arch` has the activation its weights were trained with.

    Both kinds have the same tensors, so weights of the wrong kind would load and give wrong features.
    """
    if quick == trained:
        return
    other = twin(arch)
    do = f'Set "quick_gelu": {str(trained).lower()} in the architecture\'s JSON file.'
    if other in open_clip.list_models():
        do = f"Set model.towers.arch={other}."
    raise ConfigProblem(
        message(
            where,
            expected=f"an architecture with {ACTIVATIONS[trained]}, which these weights were trained with",
            got=f"model.towers.arch={arch} with {ACTIVATIONS[quick]}",
            do=do,
        )
    )


def listed_normalisation(arch: str, pretrained: str) -> tuple[object, object] | None:
    """Return mean and deviation of a tag's training, as open_clip lists them; None for a file."""
    name = _trained_as(arch, pretrained)
    listed = open_clip.get_pretrained_cfg(name, pretrained) if name else {}
    return (listed.get("mean") or MEAN, listed.get("std") or STD) if name else None


def _download(arch: str, pretrained: str) -> Path:
    """Download the file of one of open_clip's tags, if not cached. Raises CheckpointError when the download fails."""
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(arch, pretrained)))
    except Exception as error:  # the hub's client raises many kinds of errors without a network
        where = f"model.towers.pretrained={pretrained}"
        got = f"{type(error).__name__} ({' '.join(str(error).split())[:160]})"
        do = "Give the path of a local checkpoint: model.towers.pretrained=/path/to/ViT-B-32.pt."
        raise CheckpointError(message(where, expected="to download the weights once", got=got, do=do)) from error


def _architecture(arch: str, *, where: str) -> dict[str, Any]:
    """Return open_clip's settings of an architecture, by name or from a JSON file. where: its key, for the message."""
    if arch.endswith(".json"):
        keys = ({field.name for field in fields(kind)} for kind in (CLIPVisionCfg, CLIPTextCfg))
        return read_architecture(Path(arch), vision=next(keys), text=next(keys))
    if arch in shipped():
        own = resources.files("dfer.models").joinpath("configs", f"{arch}.json")
        return typing.cast(dict[str, Any], json.loads(own.read_text()))
    known = [*shipped(), *open_clip.list_models()]
    if arch not in known:
        expected, do = "a known architecture or the path of a .json file", did_you_mean(arch, known)
        raise ConfigProblem(message(where, expected=expected, got=repr(arch), do=do))
    return typing.cast(dict[str, Any], open_clip.get_model_config(arch))


def shipped() -> list[str]:
    """List the names of the small architectures in `dfer/models/configs`."""
    folder = resources.files("dfer.models").joinpath("configs")
    return sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json"))


def _speed_up(clip: nn.Module) -> None:
    """Replace open_clip's layers by faster ones; parameters and their names stay the same."""
    for module in list(clip.modules()):
        if isinstance(module, VisionTransformer) and module.conv1.stride == module.conv1.kernel_size:
            module.conv1 = PatchEmbedding.of(module.conv1)
        if isinstance(module, ResidualAttentionBlock):
            if isinstance(module.mlp.gelu, QuickGELU):
                module.mlp.gelu = QuickGelu()
            if module.attn.batch_first:
                module.attn = SelfAttention(module.attn)
