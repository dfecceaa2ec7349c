"""Load checkpoints of the authors' DFER-CLIP code, by mapping their layout to this project's.

Source: github zengqunzhao/DFER-CLIP. The file holds the whole CLIP (`clip_model_.*`, and its towers again under their
own names), the contexts with the fixed token embeddings around them, and the temporal model.
"""

import re
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign.weights import Weights, read_weights
from dfer.models.prompts import PromptLearner
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

# Not loaded: second copies, and the embeddings around the contexts, which are compared instead.
COPIES = ("clip_model_.visual.", "text_encoder.", "prompt_learner.token_")
CONTEXTS, PREFIX, SUFFIX = "prompt_learner.ctx", "prompt_learner.token_prefix", "prompt_learner.token_suffix"
POSITIONS = "temporal_net.pos_embedding"
DIMENSIONS = {CONTEXTS: (2, 3), PREFIX: (3,), SUFFIX: (3,), POSITIONS: (3,)}


def load_released(model: DferClip, path: Path) -> None:
    """Load a released checkpoint into `model`; its optimizer state and records are ignored.

    Raises:
        CheckpointError: no such file, or trained with another configuration; the message gives the settings needed.
        ConfigProblem: the architecture lacks the activation of OpenAI's CLIP, which the authors' code uses.
    """
    released = read_weights(path)
    wrong = [f"one without {name}" for name in DIMENSIONS if name not in released]
    wrong += [
        f"one with {name} of {tuple(released[name].shape)}"
        for name, dimensions in DIMENSIONS.items()
        if name in released and released[name].dim() not in dimensions
    ]
    if wrong:
        raise CheckpointError(
            message(
                path,
                expected="a checkpoint of the released DFER-CLIP code",
                got=wrong[0],
                do="A plain CLIP goes to model.towers.pretrained, a run of this project to model.start.",
            )
        )
    check_activation(model.towers.arch, quick=model.towers.quick_gelu, trained=True, where=path)
    _check_settings(model, released, path)
    weights = translated(released)
    check_names(weights, model.state_dict(), where=path, do="Set model.towers.arch to the architecture of this file.")
    model.load_state_dict(weights)
    _check_texts(model, released, path)


def translated(released: Weights) -> Weights:
    """Translate released names and shapes to this project's; names without a counterpart are kept."""
    out: Weights = {}
    for name, value in released.items():
        if name.startswith(COPIES) or name.removeprefix("clip_model_.") in NOT_NEEDED:
            continue
        value = value.float()
        if name in ("temporal_net.cls_token", POSITIONS) and value.dim() == 3:
            value = rearrange(value, "one t d -> (one t) d")
        if value.numel():
            out[_own_name(name)] = value
    return out


def _own_name(name: str) -> str:
    for pattern, ours in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
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


def _check_texts(model: DferClip, released: Weights, path: Path) -> None:
    """Raise CheckpointError unless the embeddings stored around the contexts equal those of the model's prompts;
    otherwise texts or class order differ."""
    ours = fixed_part(model.prompts, model)
    theirs = released[SUFFIX].float()
    same = all(torch.equal(own, row[: len(own)]) for own, row in zip(ours, theirs))
    if not same:
        raise CheckpointError(
            message(
                path,
                expected="the class texts that it was trained with",
                got=f"model.text={model.config.text}",
                do="Try another model.text, and the classes in the order of the project.",
            )
        )


def fixed_part(prompts: PromptLearner, model: DferClip) -> list[Tensor]:
    """Return per class the embeddings of text and end token, in order, without start and contexts."""
    out = []
    for tokens, slots, eos in zip(prompts.tokens, prompts.slots, prompts.eos):
        kept = [i for i in range(1, int(eos) + 1) if i not in slots.tolist()]
        out.append(model.towers.embed(tokens[kept]))
    return out
