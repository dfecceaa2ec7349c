"""Record `dk_clip.npz`, `dk_clip.json`, `dk_clip.pth.gz` and `x_clip.pth.gz` from checkouts of released code.

    python tests/reference/record_dk_clip.py DK-CLIP VideoX/X-CLIP [OUT]

The checkouts are imported as they are, with their calls of `.cuda()` made harmless; this file only draws weights and
inputs and writes down what comes out. The files of weights are saved by the releases' own functions, which need yacs.
"""

import csv
import gzip
import io
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import packaging.version
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference import dk_clip_recipe as recipe  # noqa: E402

TERMS = ("global", "local", "agreement")


def main(dk_clip: Path, x_clip: Path, out: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    arrays: dict[str, np.ndarray] = {}
    with imported_from(dk_clip):
        texts = texts_of(dk_clip)
        arrays |= {f"block/{name}": value for name, value in message_block().items()}
        arrays |= {f"weighing/{name}": value for name, value in weighing().items()}
        arrays |= {f"model/{name}": value for name, value in answers(texts).items()}
        arrays |= {f"steps/{name}": value for name, value in steps(texts).items()}
        save_dk_clip(out / "dk_clip.pth.gz")
    with imported_from(x_clip):
        arrays |= {f"x_block/{name}": value for name, value in x_block().items()}
        arrays |= {f"x_model/{name}": value for name, value in x_model(texts).items()}
        save_x_clip(out / "x_clip.pth.gz")
    about = {"DK-CLIP": _commit(dk_clip), "VideoX": _commit(x_clip), "torch": torch.__version__, "texts": texts}
    np.savez_compressed(out / "dk_clip.npz", **arrays)
    (out / "dk_clip.json").write_text(json.dumps(about, indent=1) + "\n")


@contextmanager
def imported_from(checkout: Path) -> Iterator[None]:
    """Find packages `clip`, `models`, `utils` in a checkout; what else it imports and does not need is empty."""
    before = set(sys.modules)
    sys.path.insert(0, str(checkout))
    sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("clip", "models", "utils"):
                del sys.modules[name]


def texts_of(checkout: Path) -> list[str]:
    with (checkout / "labels2prompt" / "dfew_7_AUE_labels.csv").open(newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def fill(module: nn.Module, prefix: str = "") -> None:
    """Draw a module's weights by name."""
    shapes = {f"{prefix}{name}": tuple(value.shape) for name, value in module.state_dict().items()}
    drawn = recipe.drawn(shapes)
    module.load_state_dict({name: torch.from_numpy(drawn[f"{prefix}{name}"]) for name in module.state_dict()})


def message_block() -> dict[str, np.ndarray]:
    """Two clips of 16 frames in snippets of 4."""
    from models.cfam import CrossFramelAttentionBlock

    return _block(CrossFramelAttentionBlock(recipe.BLOCK_WIDTH, recipe.BLOCK_HEADS, T=16, N=4), "block", 32)


def x_block() -> dict[str, np.ndarray]:
    """Two clips of 8 frames; X-CLIP's messages go through the whole clip."""
    import clip  # noqa: F401  # first: its modules import each other
    from models.cct import CrossFramelAttentionBlock

    return _block(CrossFramelAttentionBlock(recipe.BLOCK_WIDTH, recipe.BLOCK_HEADS, T=8), "x_block", 16)


def _block(block: nn.Module, name: str, sequences: int) -> dict[str, np.ndarray]:
    fill(block, f"{name}.")
    x = torch.from_numpy(recipe.block_input(name, sequences)).requires_grad_()
    out = block(x)
    (out * torch.from_numpy(recipe.direction(name, tuple(out.shape)))).sum().backward()
    fc, attn = block.message_fc.weight, block.message_attn.in_proj_weight  # type: ignore[union-attr]
    return _plain({"out": out, "input_grad": x.grad, "fc_grad": fc.grad, "attn_grad": attn.grad})


def weighing() -> dict[str, np.ndarray]:
    from models.dk_clip import cal_mean, noise_erasing_fusion, normalize

    given = {name: torch.from_numpy(value) for name, value in recipe.weighing().items()}
    clip, snippets = given["clip"].requires_grad_(), given["snippets"].requires_grad_()
    weights = normalize(torch.einsum("bd,bkd->bk", clip, 100 * snippets))
    erased = weights.lt(0.15)
    local = noise_erasing_fusion(given["logits"], weights, erased)
    (local * given["logits"].sin()).sum().backward()
    mean = cal_mean(given["values"], erased)
    found = {"weights": weights, "erased": erased, "local": local, "mean": mean}
    return _plain({**found, "clip_grad": clip.grad, "snippets_grad": snippets.grad})


def released_model() -> Any:
    from models.dk_clip import DKCLIP

    sizes = (recipe.EMBED, recipe.SIZE, recipe.LAYERS, recipe.WIDTH, recipe.PATCH)
    text = (recipe.CONTEXT, recipe.VOCABULARY, recipe.WIDTH, recipe.WIDTH // 64, recipe.LAYERS)
    model = DKCLIP(*sizes, *text, T=recipe.FRAMES, N=recipe.SNIPPET, prompts_layers=2, prompts_alpha=0.1)
    fill(model)
    return model


def inputs(texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Frames normalised as the release does, tokens, and labels as soft targets."""
    import clip

    mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    frames = (torch.from_numpy(recipe.clips()).float() - mean) / std
    tokens = torch.cat([clip.tokenize(text, context_length=77) for text in texts])
    return frames, tokens, nn.functional.one_hot(torch.from_numpy(recipe.labels()), len(texts)).float()


def losses(out: tuple[Tensor, Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
    """The three terms, with timm's criterion that the release uses."""
    from timm.loss import SoftTargetCrossEntropy

    criterion = SoftTargetCrossEntropy()
    local = out[1].sum(dim=1)
    agreement = criterion(local.softmax(dim=-1), out[0].softmax(dim=-1))
    return {"global": criterion(out[0], target), "local": criterion(local, target), "agreement": agreement}


def answers(texts: list[str]) -> dict[str, np.ndarray]:
    """Features, prompts, logits, loss terms and their gradients."""
    model = released_model()
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith(("visual", "msim", "prompts")))
    seen: dict[str, Tensor] = {}
    model.prompts_generator_cmam.register_forward_hook(lambda *a: seen.update(prompts=a[2]))
    frames, tokens, target = inputs(texts)
    clip, patches, snippets, _ = model.encode_video(frames)
    found = {"clip": clip, "snippets": snippets, "patches": patches[:1], "text": model.encode_text(tokens)}
    terms = losses(model(frames, tokens), target)
    for term in TERMS:
        model.zero_grad()
        out = model(frames, tokens)
        losses(out, target)[term].backward()
        found |= {f"{term}/{name}": value for name, value in _gradients(model).items()}
    return _plain({**found, **seen, "global": out[0], "local": out[1], "terms": torch.stack([*terms.values()])})


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Some gradients whole; of all, [norm, product with a direction], in the order of names."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    directions = {name: torch.from_numpy(recipe.direction(name, tuple(grad.shape))) for name, grad in grads.items()}
    sums = [torch.stack([grads[name].norm(), (grads[name] * directions[name]).sum()]) for name in sorted(grads)]
    return {name: grads[name] for name in recipe.TRACED} | {"all": torch.stack(sums)}


def steps(texts: list[str]) -> dict[str, np.ndarray]:
    """Five steps of the released optimizer, with its filter of trained parameters and without its schedule."""
    from utils.optimizer import build_optimizer

    model = released_model()
    train = types.SimpleNamespace(WEIGHT_DECAY=recipe.DECAY, LR=recipe.RATE)
    config = types.SimpleNamespace(MODEL=types.SimpleNamespace(FIX_TEXT=True), TRAIN=train)
    optimizer = build_optimizer(config, model)
    frames, tokens, target = inputs(texts)
    curve = []
    for _ in range(recipe.STEPS):
        loss = torch.stack([*losses(model(frames, tokens), target).values()]).sum()
        curve.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    params = dict(model.named_parameters())
    out = {name: params[name] for name in recipe.STEPPED}
    return _plain({**out, "loss": torch.stack(curve), "logits": model(frames, tokens)[0]})


def save_dk_clip(path: Path) -> None:
    """A checkpoint as `epoch_saving` writes it, with its configuration as an object of yacs."""
    from models.dk_clip import DKCLIP
    from utils.config import _C as config
    from utils.optimizer import build_optimizer, build_scheduler

    model = DKCLIP(64, 16, 1, 64, 8, 8, 16, 64, 1, 1, T=16, N=4, prompts_layers=2, prompts_alpha=0.1)
    number(model)
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config, optimizer, 10).state_dict()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": scheduler}
    _save({**content, "max_accuracy": 76.21, "epoch": 35, "config": config}, path)


def x_model(texts: list[str]) -> dict[str, np.ndarray]:
    """X-CLIP on the first 8 frames of the clips: features of frames and clips, mean tokens, texts, logits."""
    from models.xclip import XCLIP

    sizes = (recipe.EMBED, recipe.SIZE, recipe.LAYERS, recipe.WIDTH, recipe.PATCH)
    text = (recipe.CONTEXT, recipe.VOCABULARY, recipe.WIDTH, recipe.WIDTH // 64, recipe.LAYERS)
    model = XCLIP(*sizes, *text, T=recipe.X_FRAMES, prompts_layers=2, prompts_alpha=0.1, use_cache=False)
    fill(model)
    frames, tokens, _ = inputs(texts)
    frames = frames[:, : recipe.X_FRAMES]
    clip, patches = model.encode_video(frames)
    features, _ = model.encode_image(frames.flatten(0, 1))
    found = {"features": features, "clip": clip, "tokens": patches.mean(dim=1), "text": model.encode_text(tokens)}
    return _plain({**found, "logits": model(frames, tokens)})


def save_x_clip(path: Path) -> None:
    """A checkpoint as X-CLIP's `epoch_saving` writes it, with a configuration of yacs, of the tokenizer's real size."""
    from models.xclip import XCLIP
    from utils.config import _C as config

    model = XCLIP(64, 16, 1, 64, 8, 77, 49408, 64, 1, 1, T=8, prompts_layers=2, prompts_alpha=0.1)
    number(model)
    state = {"model": model.state_dict(), "optimizer": {}, "lr_scheduler": {}}
    _save({**state, "max_accuracy": 83.8, "epoch": 29, "config": config}, path)


def number(model: nn.Module) -> None:
    """Fill every tensor with a number of its own, so that the file is small once compressed."""
    for i, (name, value) in enumerate(model.state_dict().items()):
        value.fill_(float(recipe.tensor(name, ())) if name == "logit_scale" else i)


def _save(content: dict[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))


def _plain(found: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in found.items()}


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else HERE)
