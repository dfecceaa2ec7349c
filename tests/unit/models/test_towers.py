"""Our towers against open_clip's own forward, and what they refuse."""

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError
from dfer.models.config_towers import TowersConfig
from dfer.models.layers import QuickGelu
from dfer.models.prompts import layout
from dfer.models.towers import Towers, clip_settings, shipped
from tests.reference.recipe import CLIP_LAYOUT, clips

DOCS = Path(__file__).parents[3] / "docs"
COUNTED = "3.3.0"
"""The version of open_clip whose architectures the pages count."""


@pytest.fixture(scope="module")
def oracle(clip_weights: dict[str, Tensor]) -> CLIP:
    clip = CLIP(**CLIP_LAYOUT).eval()
    clip.load_state_dict(clip_weights)
    return clip


@pytest.fixture
def towers(arch: str, clip_weights: dict[str, Tensor], tmp_path: Path) -> Towers:
    """The same weights, from a file in OpenAI's layout with its three facts among the tensors."""
    facts = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save({**clip_weights, **facts}, tmp_path / "openai.pt")
    return Towers(TowersConfig(arch=arch, pretrained=str(tmp_path / "openai.pt")))


def test_features_are_open_clips(oracle: CLIP, towers: Towers) -> None:
    frames = torch.from_numpy(clips()[0]).float() / 255
    texts = ["a smiling mouth.", "a wrinkled nose, lowered eyebrows, a tightened mouth, and narrow eyes."]
    placed = layout(texts, num_contexts=0, position="end", context_length=77)
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_frames(frames), oracle.encode_image(frames), atol=1e-5, rtol=1e-5)
        # open_clip reads all 77 tokens, ours end at the longest text.
        expected = oracle.encode_text(open_clip.SimpleTokenizer()(texts))
        assert placed.tokens.shape[1] < 25
        torch.testing.assert_close(
            towers.encode_prompts(towers.embed(placed.tokens), placed.eos), expected, atol=1e-5, rtol=1e-5
        )


def test_gradients_are_open_clips(oracle: CLIP, towers: Towers) -> None:
    frames = torch.from_numpy(clips()[0][:2]).float() / 255
    for visual in (oracle.visual, towers.visual):
        visual(frames).square().sum().backward()
    found = {name: parameter.grad for name, parameter in towers.visual.named_parameters()}
    for name, parameter in oracle.visual.named_parameters():
        torch.testing.assert_close(
            found[name], parameter.grad, atol=1e-3, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert found.keys() == {name for name, _ in oracle.visual.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_open_clips_own_files_load(arch: str, oracle: CLIP, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype).contiguous() for name, value in oracle.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    own = Towers(TowersConfig(arch=arch, pretrained=str(tmp_path / "w.safetensors"))).state_dict()
    assert torch.equal(own["text.token_embedding.weight"], state["token_embedding.weight"].float())
    assert torch.equal(own["visual.conv1.weight"], state["visual.conv1.weight"].float())


def test_text_tower_in_a_layout_of_its_own_loads(arch: str, oracle: CLIP, tmp_path: Path) -> None:
    """open_clip's custom-text models put `text.` before the names."""
    state = {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": x for name, x in oracle.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    own = Towers(TowersConfig(arch=arch, pretrained=str(tmp_path / "w.pt"))).state_dict()
    assert torch.equal(own["text.ln_final.weight"], oracle.ln_final.weight)


def test_positions_are_resized_only_when_asked(arch: str, clip_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(clip_weights, path)
    towers = Towers(TowersConfig(arch=arch, pretrained=str(path), image_size=64))
    assert towers.encode_frames(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    grown = tmp_path / "grown.json"
    grown.write_text(json.dumps({**CLIP_LAYOUT, "vision_cfg": {**CLIP_LAYOUT["vision_cfg"], "image_size": 64}}))
    with pytest.raises(
        CheckpointError, match=r"visual.positional_embedding \(17, 128\) instead of \(65, 128\)\. Set `arch`"
    ):
        Towers(TowersConfig(arch=str(grown), pretrained=str(path)))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: str, arch: str, clip_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = dict(clip_weights)
    ln = weights.pop("ln_final.bias")
    weights |= {"missing": {}, "unknown": {"ln_final.bias": ln, "head.weight": ln}, "shape": {"ln_final.bias": ln[:5]}}[
        change
    ]
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        Towers(TowersConfig(arch=arch, pretrained=str(tmp_path / "w.pt")))
    expected = {
        "missing": "got no ln_final.bias",
        "unknown": "got unknown head.weight",
        "shape": "got ln_final.bias (5,) instead of (128,)",
    }
    assert expected[change] in str(caught.value) and "Set `arch`" in str(caught.value)


def test_a_missing_checkpoint_is_told(arch: str) -> None:
    with pytest.raises(CheckpointError, match="got no such file"):
        Towers(TowersConfig(arch=arch, pretrained="nowhere/ViT-B-32.pt"))


def test_an_unknown_architecture_gets_a_suggestion() -> None:
    with pytest.raises(
        ConfigProblem, match=r"towers.arch: expected .* got 'ViT-B-32-quickgel'\. Did you mean 'ViT-B-32-quickgelu'"
    ):
        Towers(TowersConfig(arch="ViT-B-32-quickgel"))


@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32"])
def test_text_towers_of_another_kind_are_refused(arch: str) -> None:
    said = (
        f"towers.arch: expected a causal text tower with CLIP's vocabulary that pools at the end token, got '{arch}'. "
        "Take another architecture, such as ViT-B-32-quickgelu."
    )
    for told, call in (("model", Towers), ("models.b32", partial(clip_settings, model="models.b32"))):
        with pytest.raises(ConfigProblem) as caught:
            call(TowersConfig(arch=arch))
        assert str(caught.value) == f"{told}.{said}"


def test_the_message_names_the_entry_of_an_unknown_architecture_and_of_a_wrong_size() -> None:
    unknown, odd = TowersConfig(arch="ViT-B-32-quickgel"), TowersConfig(arch="tiny-conv-64", image_size=96)
    cases = {"arch": unknown, "image_size": odd}
    for key, config in cases.items():
        with pytest.raises(ConfigProblem, match=rf"^pairs\.towers\.{key}: expected "):
            clip_settings(config, model="pairs")


@pytest.mark.skipif(version("open_clip_torch") != COUNTED, reason=f"open_clip is not {COUNTED}, which the pages count")
def test_the_pages_tell_how_many_architectures_of_open_clip_are_accepted() -> None:
    taken, names = 0, open_clip.list_models()
    for arch in names:
        with suppress(ConfigProblem):
            taken += bool(clip_settings(TowersConfig(arch=arch)))
    assert 0 < taken < len(names)
    assert f"accepts {taken} of the {len(names)} architectures" in (DOCS / "exp_clip.md").read_text()
    assert f"({taken} of its {len(names)};" in (DOCS / "methods" / "zero_shot.md").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "no readable file"), ("{", "no readable file"), ("{}", "got no embed_dim, no vision_cfg")],
)
def test_a_json_architecture_must_be_one(text: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigProblem, match=expected):
        Towers(TowersConfig(arch=str(path)))


def test_image_size_must_be_positive() -> None:
    with pytest.raises(ConfigProblem, match="image_size: expected at least 1 pixel, got 0"):
        TowersConfig(image_size=0)


@pytest.mark.parametrize("arch", shipped())
def test_shipped_architectures_answer_alone_and_together_alike(arch: str) -> None:
    """No layer may mix the clips of a batch, else results would depend on the number of ranks."""
    towers = Towers(TowersConfig(arch=arch)).train()
    frames = torch.rand(4, 3, towers.image_size, towers.image_size)
    together = towers.encode_frames(frames)
    alone = torch.cat([towers.encode_frames(frame[None]) for frame in frames])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.shape == (4, towers.embed_dim)


def test_batch_norm_keeps_its_statistics_in_training(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "rn.json").write_text(json.dumps(settings))
    towers = Towers(TowersConfig(arch=str(tmp_path / "rn.json"))).train()
    norms = [module for module in towers.modules() if isinstance(module, nn.BatchNorm2d)]
    towers.encode_frames(torch.rand(4, 3, 32, 32))
    assert norms and all(int(norm.num_batches_tracked) == 0 for norm in norms)


@pytest.mark.parametrize("arch", ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu"])
def test_the_papers_architectures_are_known(arch: str) -> None:
    with torch.device("meta"):
        towers = Towers(TowersConfig(arch=arch))
    assert towers.image_size == 224 and towers.embed_dim == {"B": 512, "L": 768}[arch[4]]
    # Table 20 of the CLIP paper; the class token beside the patches.
    patch, width, layers, text_width = {
        "B-32": (32, 768, 12, 512),
        "B-16": (16, 768, 12, 512),
        "L-14": (14, 1024, 24, 768),
    }[arch[4:8]]
    shapes = {name: tuple(value.shape) for name, value in towers.state_dict().items()}
    assert shapes["visual.conv1.weight"] == (width, 3, patch, patch)
    assert shapes["visual.positional_embedding"] == ((224 // patch) ** 2 + 1, width)
    assert f"visual.transformer.resblocks.{layers - 1}.ln_1.weight" in shapes
    assert f"visual.transformer.resblocks.{layers}.ln_1.weight" not in shapes
    assert towers.text_width == text_width and towers.context_length == 77 and towers.quick_gelu
    # As many activations of OpenAI's kind as blocks: 12 in the text tower.
    assert sum(isinstance(module, QuickGelu) for module in towers.modules()) == layers + 12


@pytest.mark.integration
@pytest.mark.parametrize("arch", ["ViT-B-32-quickgelu", pytest.param("ViT-B-16-quickgelu", marks=pytest.mark.long)])
def test_the_papers_architectures_give_open_clips_features(arch: str) -> None:
    """The whole towers, 224 px, fp32, one set of random weights."""
    oracle = open_clip.create_model(arch, pretrained=None, precision="fp32").eval()
    towers = Towers(TowersConfig(arch=arch)).eval()
    state = {
        name if name.startswith("visual.") else f"text.{name}": value for name, value in oracle.state_dict().items()
    }
    towers.load_state_dict({name: state[name] for name in towers.state_dict()})
    frames = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    texts = ["a smiling mouth.", "a wrinkled nose, lowered eyebrows, a tightened mouth, and narrow eyes."]
    placed = layout(texts, num_contexts=0, position="end", context_length=77)
    with torch.no_grad():
        pictures, theirs = towers.encode_frames(frames), oracle.encode_image(frames)
        prompts = towers.encode_prompts(towers.embed(placed.tokens), placed.eos)
        expected = oracle.encode_text(open_clip.get_tokenizer(arch)(texts))
    torch.testing.assert_close(pictures, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prompts, expected, atol=1e-4, rtol=1e-4)
    # Features that small would be close to anything.
    assert theirs.abs().mean() > 1e-2 and expected.abs().mean() > 1e-2


EXACT = "towers.arch=ViT-B-32 with the exact GELU. Set model.towers.arch=ViT-B-32-quickgelu."
QUICK = "towers.arch=ViT-B-32-quickgelu with OpenAI's quick GELU. Set model.towers.arch=ViT-B-32."


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What open_clip was asked to download; it gets nothing."""
    asked: list[str] = []

    def download(cfg: dict[str, Any]) -> str:
        asked.append(cfg["url"])
        raise ConnectionError("no network here")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    return asked


@pytest.mark.parametrize(
    ("arch", "tag", "said"),
    [
        ("ViT-B-32", "openai", EXACT),
        ("ViT-B-32", "metaclip_400m", EXACT),
        ("RN50", "openai", "Set model.towers.arch=RN50-quickgelu."),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", QUICK),
    ],
)
def test_a_tag_trained_with_the_other_activation_is_refused(
    arch: str, tag: str, said: str, no_download: list[str]
) -> None:
    with torch.device("meta"), pytest.raises(ConfigProblem) as caught:
        Towers(TowersConfig(arch=arch, pretrained=tag))
    assert str(caught.value).startswith(f"model.towers.pretrained={tag}: expected an architecture with ")
    assert said in str(caught.value) and caught.value.exit_code == 2 and not no_download


@pytest.mark.parametrize(("arch", "tag"), [("ViT-B-32-quickgelu", "openai"), ("ViT-B-32", "laion2b_s34b_b79k")])
def test_a_tag_with_the_architectures_activation_is_downloaded(arch: str, tag: str, no_download: list[str]) -> None:
    with torch.device("meta"), pytest.raises(CheckpointError, match=r"got ConnectionError \(no network here"):
        Towers(TowersConfig(arch=arch, pretrained=tag))
    assert len(no_download) == 1


class Scripted(nn.Module):
    """As OpenAI's archives: the facts are buffers of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_final = nn.LayerNorm(4)
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        return self.ln_final(x)


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against writing new ones
        torch.jit.script(Scripted()).save(str(path))


def _state(path: Path) -> None:
    torch.save({"ln_final.weight": torch.ones(4), "context_length": torch.tensor(77)}, path)


@pytest.mark.parametrize("write", [_script, _state])
def test_openais_files_need_openais_activation(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "ViT-B-32.pt"
    write(path)
    with torch.device("meta"), pytest.raises(ConfigProblem) as caught:
        Towers(TowersConfig(arch="ViT-B-32", pretrained=str(path)))
    assert str(caught.value) == (
        f"model.towers.pretrained={path}: expected an architecture with OpenAI's quick GELU, which these weights were "
        f"trained with, got model.{EXACT}"
    )
    with torch.device("meta"), pytest.raises(CheckpointError, match="tensors that fit the model"):
        Towers(TowersConfig(arch="ViT-B-32-quickgelu", pretrained=str(path)))


def test_an_architecture_of_ones_own_sets_the_activation_in_its_file(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**CLIP_LAYOUT, "quick_gelu": False}))
    _state(tmp_path / "w.pt")
    with pytest.raises(ConfigProblem, match='Set "quick_gelu": true in the architecture\'s JSON file'):
        Towers(TowersConfig(arch=str(own), pretrained=str(tmp_path / "w.pt")))


def _open_clips(tmp_path: Path, clip_weights: dict[str, Tensor], *, quick: bool, beside: object = None) -> TowersConfig:
    """A file in open_clip's layout, an architecture with the quick GELU or the exact one, and what lies beside."""
    folder = tmp_path / "hub"
    folder.mkdir(exist_ok=True)
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**CLIP_LAYOUT, "quick_gelu": quick}))
    safetensors.torch.save_file(clip_weights, folder / "open_clip_model.safetensors")
    if beside is not None:
        (folder / "open_clip_config.json").write_text(beside if isinstance(beside, str) else json.dumps(beside))
    return TowersConfig(arch=str(own), pretrained=str(folder / "open_clip_model.safetensors"))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("said", [True, False, None])
def test_the_configuration_beside_a_file_decides_its_activation(
    tmp_path: Path, clip_weights: dict[str, Tensor], quick: bool, said: bool | None
) -> None:
    """Left out it is the exact one, as open_clip has it."""
    model = {**CLIP_LAYOUT} | ({} if said is None else {"quick_gelu": said})
    if said is None:
        model.pop("quick_gelu", None)
    config = _open_clips(tmp_path, clip_weights, quick=quick, beside={"model_cfg": model, "preprocess_cfg": {}})
    if quick is bool(said):
        origin = Towers(config).origin
        assert origin is not None and origin.endswith(f", as {tmp_path}/hub/open_clip_config.json says")
        assert ("quick GELU" in origin) == quick
        return
    with pytest.raises(ConfigProblem) as caught:
        Towers(config)
    assert "(open_clip_config.json beside it): expected an architecture with " in str(caught.value)
    assert f'Set "quick_gelu": {str(bool(said)).lower()} in' in str(caught.value)


@pytest.mark.parametrize("quick", [True, False])
def test_without_it_nothing_confirms_the_activation_and_that_is_said(
    tmp_path: Path, clip_weights: dict[str, Tensor], quick: bool
) -> None:
    config = _open_clips(tmp_path, clip_weights, quick=quick)
    kind = "OpenAI's quick GELU" if quick else "the exact GELU"
    assert Towers(config).origin == (
        f"model.towers.pretrained={config.pretrained}: {kind}, as model.towers.arch={config.arch} has it; the file "
        "cannot confirm it, and weights trained with the other one give wrong features. Compare with the page it came "
        "from"
    )


def test_openais_files_are_known(towers: Towers) -> None:
    assert towers.origin is not None and towers.origin.endswith("OpenAI's quick GELU, as all of OpenAI's files")
    assert Towers(TowersConfig(arch="tiny-vit-64")).origin is None


@pytest.mark.parametrize("beside", ["{", "[]", "{}", {"model_cfg": {"quick_gelu": "yes"}}, " " * 70_000], ids=str)
def test_a_configuration_beside_that_says_nothing_is_refused(
    tmp_path: Path, clip_weights: dict[str, Tensor], beside: object
) -> None:
    config = _open_clips(tmp_path, clip_weights, quick=True, beside=beside)
    with pytest.raises(ConfigProblem, match=r"open_clip_config\.json: expected .*Download it again") as caught:
        Towers(config)
    assert caught.value.exit_code == 2


def test_a_folder_that_bears_a_tags_name_does_not_hide_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_download: list[str]
) -> None:
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"), pytest.raises(CheckpointError, match=r"got ConnectionError \(no network here"):
        Towers(TowersConfig(arch="ViT-B-32-quickgelu", pretrained="openai"))
