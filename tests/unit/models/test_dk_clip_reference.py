"""With the same weights DK-CLIP's parts, losses and steps are those of the released code, and X-CLIP's block is that of
its release; see tests/reference/README.md."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.emotions import label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.config_dk_clip import DkClipConfig
from dfer.models.config_towers import TowersConfig
from dfer.models.cross_frame import MessageBlock
from dfer.models.dk_clip import DkClip
from dfer.models.foreign.dk_clip import ours
from dfer.models.foreign.weights import read_weights
from dfer.models.snippets import mean_of_kept, weigh
from dfer.models.texts import class_texts
from dfer.models.towers import check_names
from dfer.recognition import ClipBatch, Progress
from dfer.training.config import AdamWConfig, GroupConfig
from dfer.training.optim import build_optimizer
from tests.reference import dk_clip_recipe as recipe

HERE = Path(recipe.__file__).parent
OUTPUT, GRADIENT = 1e-4, 1e-3
START = Progress(epoch=0, step=0, fraction=0.0)
TERMS = ("global", "local", "agreement")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(HERE / "dk_clip.npz", allow_pickle=False) as arrays:
        return dict(arrays) | {"about": json.loads((HERE / "dk_clip.json").read_text())}


def close(found: Tensor, expected: np.ndarray, what: str) -> None:
    """Outputs within 1e-4."""
    assert tuple(found.shape) == expected.shape, what
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=OUTPUT, rtol=OUTPUT, err_msg=what)


def close_gradient(found: Tensor, expected: np.ndarray, what: str) -> None:
    """Gradients within 1e-3 of their norm."""
    assert tuple(found.shape) == expected.shape, what
    norm = np.linalg.norm(expected)
    assert norm > 0, what
    assert np.linalg.norm(found.detach().numpy() - expected) < GRADIENT * norm, what


# --- parts


class _Layer(torch.nn.Module):
    """A layer of an image tower, as `MessageBlock` takes it over."""

    def __init__(self, width: int, heads: int) -> None:
        from dfer.models.layers import QuickGelu, SelfAttention

        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = SelfAttention(torch.nn.MultiheadAttention(width, heads))
        parts = {"c_fc": torch.nn.Linear(width, 4 * width), "gelu": QuickGelu()}
        self.mlp = torch.nn.Sequential()
        for name, part in {**parts, "c_proj": torch.nn.Linear(4 * width, width)}.items():
            self.mlp.add_module(name, part)


@pytest.mark.parametrize(("name", "sequences", "frames"), [("block", 32, 4), ("x_block", 16, 8)])
def test_a_message_block(recorded: dict[str, Any], name: str, sequences: int, frames: int) -> None:
    """DK-CLIP's within snippets of 4 of 16 frames; X-CLIP's over whole clips of 8."""
    block = MessageBlock(_Layer(recipe.BLOCK_WIDTH, recipe.BLOCK_HEADS))
    shapes = {f"{name}.{key}": tuple(value.shape) for key, value in block.state_dict().items()}
    drawn = recipe.drawn(shapes)
    block.load_state_dict({key: torch.from_numpy(drawn[f"{name}.{key}"]) for key in block.state_dict()})
    x = torch.from_numpy(recipe.block_input(name, sequences)).requires_grad_()
    out = block(x.transpose(0, 1), frames).transpose(0, 1)
    (out * torch.from_numpy(recipe.direction(name, tuple(out.shape)))).sum().backward()
    assert x.grad is not None
    close(out, recorded[f"{name}/out"], "out")
    close_gradient(x.grad, recorded[f"{name}/input_grad"], "input")
    close_gradient(block.message_fc.weight.grad, recorded[f"{name}/fc_grad"], "message_fc")
    close_gradient(block.message_attn.in_proj_weight.grad, recorded[f"{name}/attn_grad"], "message_attn")


def test_weights_and_erasing_of_none_one_and_two_snippets(recorded: dict[str, Any]) -> None:
    given = {name: torch.from_numpy(value) for name, value in recipe.weighing().items()}
    clip, snippets = given["clip"].requires_grad_(), given["snippets"].requires_grad_()
    weights, kept = weigh(clip, snippets, erase_below=0.15)
    erased = recorded["weighing/erased"]
    assert erased.sum(axis=1).tolist() == [0, 1, 2] and np.array_equal(~kept.numpy(), erased)
    local = given["logits"] * (weights * kept)[..., None]
    (local * given["logits"].sin()).sum().backward()
    close(weights, recorded["weighing/weights"], "weights")
    close(local, recorded["weighing/local"], "local")
    close(mean_of_kept(given["values"], kept), recorded["weighing/mean"], "mean")
    assert clip.grad is not None and snippets.grad is not None
    close_gradient(clip.grad, recorded["weighing/clip_grad"], "clip")
    close_gradient(snippets.grad, recorded["weighing/snippets_grad"], "snippets")


# --- the whole model


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released checkpoint of the recipe's sizes, typed from the release's layout."""
    w, d, patches = recipe.WIDTH, recipe.EMBED, (recipe.SIZE // recipe.PATCH) ** 2

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    def attention(name: str, size: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.in_proj_weight": (3 * size, size),
            f"{name}.in_proj_bias": (3 * size,),
            **linear(f"{name}.out_proj", size, size),
        }

    def layer(name: str, size: int) -> dict[str, tuple[int, ...]]:
        mlp = {**linear(f"{name}.mlp.c_fc", 4 * size, size), **linear(f"{name}.mlp.c_proj", size, 4 * size)}
        return {**attention(f"{name}.attn", size), **norm(f"{name}.ln_1", size), **norm(f"{name}.ln_2", size), **mlp}

    shapes: dict[str, tuple[int, ...]] = {"visual.conv1.weight": (w, 3, recipe.PATCH, recipe.PATCH), "logit_scale": ()}
    for tower in ("visual", "visual_semantic"):
        shapes |= {f"{tower}.class_embedding": (w,), f"{tower}.positional_embedding": (patches + 1, w)}
        shapes |= {f"{tower}.proj": (w, d), **norm(f"{tower}.ln_pre", w), **norm(f"{tower}.ln_post", w)}
        for i in range(recipe.LAYERS):
            root = f"{tower}.transformer.resblocks.{i}"
            shapes |= {**layer(root, w), **linear(f"{root}.message_fc", w, w), **norm(f"{root}.message_ln", w)}
            shapes |= attention(f"{root}.message_attn", w)
    shapes |= {"msim.positional_embedding": (1, 4, d), **layer("msim.resblocks.0", d)}
    shapes |= {**norm("prompts_visual_ln", w), "prompts_visual_proj": (w, d)}
    root = "prompts_generator_cmam"
    shapes |= {f"{root}.alpha": (d,), **norm(f"{root}.norm", d)}
    for i in range(2):
        part = f"{root}.decoder.{i}"
        shapes |= {f"{part}.cross_attn.{name}_proj.weight": (d, d) for name in "qkv"}
        shapes |= {**linear(f"{part}.cross_attn.proj", d, d), **norm(f"{part}.norm1", d), **norm(f"{part}.norm3", d)}
        shapes |= {**linear(f"{part}.mlp.0", 4 * d, d), **linear(f"{part}.mlp.3", d, 4 * d)}
    text = {"positional_embedding": (recipe.CONTEXT, w), "token_embedding.weight": (recipe.VOCABULARY, w)}
    shapes |= {**text, "text_projection": (w, d), **norm("ln_final", w)}
    for i in range(recipe.LAYERS):
        shapes |= layer(f"transformer.resblocks.{i}", w)
    return shapes


@pytest.fixture(scope="module")
def released_weights() -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(x)) for name, x in recipe.drawn(released_shapes()).items()}


def model_of(weights: dict[str, Tensor], folder: Path, **changes: Any) -> DkClip:
    arch = folder / "reference.json"
    arch.write_text(json.dumps(recipe.CLIP_LAYOUT))
    config = DkClipConfig(towers=TowersConfig(arch=str(arch)), snippet=recipe.SNIPPET, **changes)
    model = build(config, label_set("basic7"), num_frames=recipe.FRAMES, seed=0)
    assert isinstance(model, DkClip)
    model.load_state_dict(ours(weights))
    return model


@pytest.fixture(scope="module")
def model(released_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> DkClip:
    return model_of(released_weights, tmp_path_factory.mktemp("reference"))


def batch() -> ClipBatch:
    labels = torch.from_numpy(recipe.labels())
    return ClipBatch(frames=torch.from_numpy(recipe.clips()), labels=labels, index=torch.arange(recipe.CLIPS))


def test_features_prompts_and_logits(recorded: dict[str, Any], model: DkClip) -> None:
    assert class_texts(label_set("basic7"), "action_units") == recorded["about"]["texts"]
    prompts: list[Tensor] = []
    hook = model.prompts.register_forward_hook(lambda *given: prompts.append(given[2] - model.encode_text()))
    out, seen = model(batch()), model.encode_video(batch().frames)
    hook.remove()
    close(seen.clip, recorded["model/clip"], "clip")
    close(seen.snippets, recorded["model/snippets"], "snippets")
    close(seen.patches[:1], recorded["model/patches"], "patches")
    close(model.encode_text(), recorded["model/text"], "text")
    close(prompts[0], recorded["model/prompts"], "prompts")
    close(out.logits, recorded["model/global"], "global logits")
    close(out.aux["snippets"], recorded["model/local"], "logits of snippets")
    assert np.ptp(recorded["model/global"], axis=0).min() > 10 * OUTPUT


def test_loss_terms(recorded: dict[str, Any], model: DkClip) -> None:
    terms = model.loss(model(batch()), batch(), START)
    assert tuple(terms) == TERMS
    close(torch.stack([*terms.values()]), recorded["model/terms"], "terms")


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_each_loss_term(
    recorded: dict[str, Any], released_weights: dict[str, Tensor], model: DkClip, term: str
) -> None:
    """Some whole; of every trained parameter, the norm and the product with a random direction."""
    model.zero_grad()
    model.loss(model(batch()), batch(), START)[term].backward()
    params = dict(model.named_parameters())
    names = {name: next(iter(ours({name: value}))) for name, value in released_weights.items() if _trained(name)}
    traced = {name: recorded[f"model/{term}/{name}"] for name in recipe.TRACED}
    for name, expected in traced.items():
        if np.abs(expected).max() > 0:
            close_gradient(_shaped(params[names[name]].grad, expected), expected, f"{term} {name}")
    found = [_sums(name, params[names[name]].grad, released_weights[name]) for name in sorted(names)]
    kept = [pair for pair in found if pair is not None]
    sums = recorded[f"model/{term}/all"].tolist()
    assert len(kept) == len(sums)
    largest = max(norm for norm, _ in sums)
    for (norm, product), (their_norm, their_product) in zip(kept, sums):
        assert norm == pytest.approx(their_norm, rel=GRADIENT, abs=1e-6 * largest)
        assert product == pytest.approx(their_product, abs=GRADIENT * their_norm + 1e-6 * largest)


def _trained(name: str) -> bool:
    unused = ("visual_semantic.ln_post", "visual_semantic.proj")
    return name.startswith(("visual", "msim", "prompts")) and not name.startswith(unused)


def _shaped(grad: Tensor | None, expected: np.ndarray) -> Tensor:
    assert grad is not None
    return grad.reshape(expected.shape)


def _sums(name: str, grad: Tensor | None, like: Tensor) -> tuple[float, float] | None:
    if grad is None:
        return None
    whole = grad.reshape(like.shape)
    return float(whole.norm()), float((whole * torch.from_numpy(recipe.direction(name, tuple(like.shape)))).sum())


@pytest.mark.slow("five steps on 48 frames, within 2 s on an idle machine")
def test_five_steps_of_the_released_optimizer(
    recorded: dict[str, Any], released_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """With the released filter, rates and weight decay, none of it on vectors and positions."""
    model = model_of(released_weights, tmp_path, train="released")
    groups = {"image": GroupConfig(lr=recipe.RATE)}
    groups |= {name: GroupConfig(lr=10 * recipe.RATE) for name in ("messages", "prompts")}
    config = AdamWConfig(groups=groups, betas=(0.9, 0.98), weight_decay=recipe.DECAY, no_decay=True)
    optimizer = build_optimizer(config, model)
    for group in optimizer.param_groups:
        group["lr"] = groups[group["name"].split("/")[0]].lr
    curve = []
    for _ in range(recipe.STEPS):
        loss = torch.stack([*model.loss(model(batch()), batch(), START).values()]).sum()
        curve.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert recorded["steps/loss"][-1] < 0.9 * recorded["steps/loss"][0]
    close(torch.stack(curve), recorded["steps/loss"], "loss")
    close(model(batch()).logits, recorded["steps/logits"], "logits")
    params = dict(model.named_parameters())
    for name in recipe.STEPPED:
        own = next(iter(ours({name: released_weights[name]})))
        moved = recorded[f"steps/{name}"] - released_weights[name].numpy()
        assert np.abs(moved).max() > recipe.RATE, name
        close(params[own], recorded[f"steps/{name}"], name)


# --- files


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((HERE / f"{name}.gz").read_bytes()))
    return path


def test_a_checkpoint_of_the_release_is_read_with_its_yacs_object(tmp_path: Path) -> None:
    """Written by the released classes and `epoch_saving`'s keys; every tensor holds a number of its own."""
    path = unpacked("dk_clip.pth", tmp_path)
    assert b"yacs.config" in path.read_bytes()
    weights = read_weights(path)
    layout = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    (tmp_path / "small.json").write_text(json.dumps(layout))
    config = DkClipConfig(towers=TowersConfig(arch=str(tmp_path / "small.json")))
    own = build(config, label_set("basic7"), num_frames=16, seed=0).state_dict()
    found = ours(weights)
    text = ("towers.text.token_embedding.weight", "towers.text.positional_embedding")  # made short for the recording
    check_names(
        {name: value for name, value in found.items() if name not in text},
        {name: value for name, value in own.items() if name not in text},
        where=path,
        do="-",
    )
    assert set(text) < set(found)
    numbers = [float(value.flatten()[0]) for value in found.values()]
    assert len(set(numbers)) == len(found) == len(weights) - 4  # scale, and three of the second encoder's answer
    assert (
        found["towers.visual.blocks.0.message_fc.weight"]
        .eq(weights["visual.transformer.resblocks.0.message_fc.weight"])
        .all()
    )
    assert found["prompts.layers.1.mlp.2.bias"].eq(weights["prompts_generator_cmam.decoder.1.mlp.3.bias"]).all()


def test_a_file_of_x_clip_has_the_same_names_without_a_second_encoder(tmp_path: Path) -> None:
    path = unpacked("x_clip.pth", tmp_path)
    assert b"yacs.config" in path.read_bytes()
    weights = read_weights(path)
    found, theirs = ours(weights), ours(read_weights(unpacked("dk_clip.pth", tmp_path)))
    assert set(found) == {name for name in theirs if not name.startswith("semantic.")}
    assert found["integration.positions"].shape == (8, 64)
    assert found["integration.mlp.2.weight"].eq(weights["mit.resblocks.0.mlp.c_proj.weight"]).all()


def x_clip_weights() -> dict[str, Tensor]:
    """Weights of an X-CLIP of the recipe's sizes, drawn by its own names."""
    pairs = released_shapes().items()
    renamed = {name.replace("msim.", "mit.").replace("_cmam.", "."): shape for name, shape in pairs}
    shapes = {name: shape for name, shape in renamed.items() if not name.startswith("visual_semantic.")}
    shapes["mit.positional_embedding"] = (1, recipe.X_FRAMES, recipe.EMBED)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in recipe.drawn(shapes).items()}


@torch.no_grad()
def test_the_parts_of_an_x_clip_answer_as_its_release(recorded: dict[str, Any], tmp_path: Path) -> None:
    """Messages go through all 8 frames, which are integrated in place of snippets; the texts see the mean tokens of all
    frames."""
    (tmp_path / "clip.json").write_text(json.dumps(recipe.CLIP_LAYOUT))
    config = DkClipConfig(towers=TowersConfig(arch=str(tmp_path / "clip.json")), snippet=1)
    model = build(config, label_set("basic7"), num_frames=recipe.X_FRAMES, seed=1)
    assert isinstance(model, DkClip)
    left = model.load_state_dict(ours(x_clip_weights()), strict=False)
    assert not left.unexpected_keys and all(name.startswith("semantic.") for name in left.missing_keys)
    frames = torch.from_numpy(recipe.clips()[:, : recipe.X_FRAMES]).flatten(0, 1).float()
    features, patches = model.image((frames / 255 - model.mean) / model.std, recipe.X_FRAMES)
    shape = (recipe.CLIPS, recipe.X_FRAMES)
    tokens, clip = model.visual_tokens(patches).unflatten(0, shape).mean(dim=1), features.unflatten(0, shape)
    clip, text = model.integration(clip), model.encode_text()
    unit = F.normalize(model.prompts(text, tokens), dim=-1)
    logits = 100 * torch.einsum("bd,bkd->bk", F.normalize(clip, dim=-1), unit)
    found = {"features": features, "clip": clip, "tokens": tokens, "text": text, "logits": logits}
    for name, value in found.items():
        close(value, recorded[f"x_model/{name}"], name)
    assert np.ptp(recorded["x_model/logits"], axis=0).min() > 10 * OUTPUT


def test_other_names_and_another_scale_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"^a.pth: expected the names of DK-CLIP's or X-CLIP's .* got temporal_net"
    ):
        ours({"temporal_net.cls_token": torch.zeros(1)}, where="a.pth")
    with pytest.raises(CheckpointError, match=r"expected logit_scale of 4\.605, as CLIP has it, got 2\.659"):
        ours({"logit_scale": torch.tensor(2.6593)})
