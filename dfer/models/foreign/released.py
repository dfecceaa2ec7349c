"""Checkpoints of the authors' DFER-CLIP code, mapped to this project's weights.

Source: github zengqunzhao/DFER-CLIP @d10d5a4. The file holds the whole CLIP (`clip_model_.*`, and its towers again as
`image_encoder.*` and `text_encoder.*`), the contexts with the fixed token embeddings around them, and the temporal
model. Every name is used, is a second copy that must be equal, or is CLIP's own temperature, which the method does not
use; any other name is refused.

Letters: K classes, N contexts, L tokens, W width of a token.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from dfer.emotions import Emotions
from dfer.errors import CheckpointError, message
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign.weights import Weights
from dfer.models.prompts import PromptLearner, layout
from dfer.models.texts import SINGLE, class_texts
from dfer.models.towers import NOT_NEEDED, check_activation, check_names

TEXT = "token_embedding|positional_embedding|transformer|ln_final|text_projection"
LAYER = r"temporal_net\.temporal_transformer\.layers\.([0-9]{1,4})"

# (pattern of a released name, replacement that gives this project's name).
NAMES = (
    (r"prompt_learner\.ctx", r"prompts.contexts"),
    (r"image_encoder\.(.+)", r"towers.visual.\1"),
    (rf"clip_model_\.((?:{TEXT}).*)", r"towers.text.\1"),
    (r"temporal_net\.cls_token", r"temporal.token"),
    (r"temporal_net\.pos_embedding", r"temporal.positions"),
    (rf"{LAYER}\.0\.fn\.norm\.(.+)", r"temporal.blocks.\1.norm1.\2"),
    (rf"{LAYER}\.0\.fn\.fn\.to_qkv\.(.+)", r"temporal.blocks.\1.attention.qkv.\2"),
    (rf"{LAYER}\.0\.fn\.fn\.to_out\.0\.(.+)", r"temporal.blocks.\1.attention.out.\2"),
    (rf"{LAYER}\.1\.fn\.norm\.(.+)", r"temporal.blocks.\1.norm2.\2"),
    (rf"{LAYER}\.1\.fn\.fn\.net\.0\.(.+)", r"temporal.blocks.\1.mlp.0.\2"),
    (rf"{LAYER}\.1\.fn\.fn\.net\.3\.(.+)", r"temporal.blocks.\1.mlp.2.\2"),
)

# (prefix of a second copy, prefix of the first one). Copies must be equal.
COPIES = (("clip_model_.visual.", "image_encoder."), ("text_encoder.", "clip_model_."))
CONTEXTS, PREFIX, SUFFIX = "prompt_learner.ctx", "prompt_learner.token_prefix", "prompt_learner.token_suffix"
POSITIONS = "temporal_net.pos_embedding"
EMBEDDING = "clip_model_.token_embedding.weight"
DIMENSIONS = {CONTEXTS: (2, 3), PREFIX: (3,), SUFFIX: (3,), POSITIONS: (3,), EMBEDDING: (2,)}
PAD_TOKEN = 0
"""Token that OpenAI's tokenizer writes after the end of a text."""


def fill_released(model: DferClip, released: Weights, path: Path, emotions: Emotions) -> None:
    """Load a released checkpoint's weights into `model`, all or none.

    Raises:
        CheckpointError: another kind of file, or trained with another configuration; the message gives the settings.
        ConfigProblem: the architecture lacks the activation of OpenAI's CLIP, which the authors' code uses.
    """
    _check_kind(released, path)
    check_activation(model.towers.arch, quick=model.towers.quick_gelu, trained=True, where=path)
    _check_settings(model, released, path)
    weights = ours(released, path)
    check_names(weights, model.state_dict(), where=path, do="Set model.towers.arch to the architecture of this file.")
    _check_texts(model, released, path, emotions)
    model.load_state_dict(weights)


def _check_kind(released: Weights, path: Path) -> None:
    wrong = [f"one without {name}" for name in DIMENSIONS if name not in released]
    wrong += [
        f"one with {name} of {tuple(released[name].shape)}"
        for name, dimensions in DIMENSIONS.items()
        if name in released and (released[name].dim() not in dimensions or 0 in released[name].shape[-1:])
    ]
    if wrong:
        expected = "a checkpoint of the released DFER-CLIP code"
        do = "A plain CLIP is imported with --method towers; a run of this project goes to model.start."
        raise CheckpointError(message(path, expected=expected, got=wrong[0], do=do))


def ours(released: Weights, path: Path) -> Weights:
    """Translate released names and shapes to this project's, and leave out what `left_out` names. Names without a
    counterpart are kept, so that the model refuses them.

    Raises CheckpointError if a second copy differs from the first.
    """
    without = left_out(released, path)
    out: Weights = {}
    for name, value in released.items():
        if name in without:
            continue
        value = value.float()
        if name in ("temporal_net.cls_token", POSITIONS) and value.dim() == 3:
            value = rearrange(value, "one t d -> (one t) d")
        if value.numel():
            out[_own_name(name)] = value
    return out


def left_out(released: Weights, path: Path) -> dict[str, str]:
    """Return the names that are not loaded, each with the reason. Raises CheckpointError if a second copy differs."""
    found = dict.fromkeys((PREFIX, SUFFIX), "the fixed embeddings beside the contexts, compared with the class texts")
    for name, value in released.items():
        if name.removeprefix("clip_model_.") in NOT_NEEDED:
            found[name] = "CLIP's own temperature or a description of the file, which this method does not use"
        elif first := next((new + name.removeprefix(old) for old, new in COPIES if name.startswith(old)), ""):
            if first not in released or not torch.equal(value, released[first]):
                expected, do = f"{name} equal to {first}", "Copy the file again from its authors."
                raise CheckpointError(message(path, expected=expected, got="another tensor", do=do))
            found[name] = f"a second copy of {first}, equal"
    return found


def _own_name(name: str) -> str:
    for pattern, own in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, own, name)
    return name


def _check_settings(model: DferClip, released: Weights, path: Path) -> None:
    """Compare settings derived from the shapes with the configuration, so that messages name settings, not tensors."""
    contexts, config = released[CONTEXTS], model.config
    depth = 1 + max((int(n) for name in released for n in re.findall(rf"^{LAYER}\.", name)), default=-1)
    found = {
        "model.num_contexts": (contexts.shape[-2], config.num_contexts),
        "model.shared_contexts": (contexts.dim() == 2, config.shared_contexts),
        "model.temporal.depth": (depth, config.temporal.depth),
        "data.frames": (released[POSITIONS].shape[1] - 1, model.num_frames),
        "number of classes": (len(released[PREFIX]), len(model.prompts.tokens)),
    }
    wrong = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    if wrong:
        expected = ", ".join(f"{name} = {str(pair[0]).lower()}" for name, pair in wrong.items())
        got = ", ".join(str(pair[1]).lower() for pair in wrong.values())
        raise CheckpointError(message(path, expected=expected, got=got, do="Set them as the checkpoint has them."))


def _check_texts(model: DferClip, released: Weights, path: Path, emotions: Emotions) -> None:
    """Raise CheckpointError unless the embeddings stored around the contexts equal those of the model's prompts;
    otherwise texts or class order differ."""
    if _same_texts(model.prompts, released):
        return
    do = "Set the model.text and the order of data.classes that it was trained with."
    if kind := next(_fitting(model, released, emotions), ""):
        do = f"Set model.text={kind}."
    expected, got = "the class texts that it was trained with", f"model.text={model.config.text}"
    raise CheckpointError(message(path, expected=expected, got=got, do=do))


def _fitting(model: DferClip, released: Weights, emotions: Emotions) -> Iterator[str]:
    """Yield the kinds of packaged texts that the checkpoint was trained with."""
    config, length = model.config, model.towers.context_length
    for kind in SINGLE:
        texts = class_texts(emotions, kind)
        placed = layout(
            texts, num_contexts=config.num_contexts, position=config.context_position, context_length=length
        )
        prompts = PromptLearner(placed, width=model.towers.text_width, shared=config.shared_contexts)
        if _same_texts(prompts, released):
            yield kind


def _same_texts(prompts: PromptLearner, released: Weights) -> bool:
    """Whether the fixed embeddings before [K 1 W] and after the contexts [K L W] are those of some prompts."""
    table, suffix, prefix = released[EMBEDDING], released[SUFFIX], released[PREFIX]
    if prompts.tokens.max() >= len(table) or len(suffix) != len(prompts.tokens):
        return False
    expected = torch.full(suffix.shape[:2], PAD_TOKEN)
    for row, tokens in enumerate(fixed_tokens(prompts)):
        if len(tokens) > expected.shape[1]:
            return False
        expected[row, : len(tokens)] = tokens
    return torch.equal(table[expected], suffix) and torch.equal(table[prompts.tokens[:, :1]], prefix)


def fixed_tokens(prompts: PromptLearner) -> list[Tensor]:
    """Return per class the tokens of text and end token, in order, without start and contexts."""
    out = []
    for tokens, slots, eos in zip(prompts.tokens, prompts.slots, prompts.eos):
        kept = [i for i in range(1, int(eos) + 1) if i not in slots.tolist()]
        out.append(tokens[kept])
    return out
