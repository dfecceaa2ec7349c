"""Record `dfer_clip.npz` and `dfer_clip.json` from a checkout of the released DFER-CLIP code.

    python tests/reference/record.py CHECKOUT [OUT]

The checkout is imported as it is; this file only draws weights and inputs and writes down what comes out.
"""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import packaging.version
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference.recipe import (  # noqa: E402
    CASES,
    CONTEXT,
    EMBED,
    LAYERS,
    PATCH,
    SIZE,
    VOCABULARY,
    WIDTH,
    Case,
    clip_shapes,
    clips,
    drawn,
    new_shapes,
)


def main(checkout: Path, out: Path) -> None:
    # The checkout asks a package for this module that setuptools no longer has.
    sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)  # type: ignore[assignment]
    sys.path[:0] = [str(checkout), str(checkout / "models")]
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"commit": _commit(checkout), "torch": torch.__version__, "cases": {}}
    for case in CASES:
        results, texts = record(case)
        arrays |= {f"{case.name}/{name}": value for name, value in results.items()}
        about["cases"][case.name] = {"texts": texts}
    np.savez_compressed(out / "dfer_clip.npz", **arrays)
    (out / "dfer_clip.json").write_text(json.dumps(about, indent=1) + "\n")


def record(case: Case) -> tuple[dict[str, np.ndarray], list[str]]:
    from clip.model import CLIP
    from models import Text
    from models.Generate_Model import GenerateModel

    clip = CLIP(EMBED, SIZE, LAYERS, WIDTH, PATCH, CONTEXT, VOCABULARY, WIDTH, WIDTH // 64, LAYERS)
    clip.load_state_dict({name: torch.from_numpy(np.asarray(x)) for name, x in drawn(clip_shapes()).items()})
    texts = getattr(Text, f"{case.text}_{case.classes}")
    args = types.SimpleNamespace(
        contexts_number=case.contexts,
        class_specific_contexts=str(not case.shared),
        temporal_layers=case.depth,
        class_token_position=case.position,
        load_and_tune_prompt_learner="False",
    )
    model = GenerateModel(texts, clip, args).eval()
    new = {name: torch.from_numpy(x) for name, x in drawn(new_shapes(case)).items()}
    expected = {name for name in model.state_dict() if name.startswith(("prompt_learner.ctx", "temporal_net."))}
    if set(new) != expected:
        raise SystemExit(f"names differ: {set(new) ^ expected}")
    model.load_state_dict(new, strict=False)
    return measured(model, clips()), list(texts)


def measured(model: Any, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, both features before normalisation, tokens, and the loss's gradient at the contexts."""
    features: dict[str, torch.Tensor] = {}
    model.temporal_net.register_forward_hook(lambda *a: features.update(video=a[2]))
    model.text_encoder.register_forward_hook(lambda *a: features.update(text=a[2]))
    for parameter in model.text_encoder.parameters():
        parameter.requires_grad_(False)
    logits = model(torch.from_numpy(frames).float() / 255)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(frames))).backward()
    out = {"logits": logits, **features, "cls_grad": model.temporal_net.cls_token.grad}
    if model.prompt_learner.ctx.numel():
        out["context_grad"] = model.prompt_learner.ctx.grad
    arrays = {name: value.detach().numpy() for name, value in out.items()}
    return {**arrays, "tokens": model.tokenized_prompts.numpy().astype(np.uint16)}


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
