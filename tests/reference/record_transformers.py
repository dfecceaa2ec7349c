"""Record `transformers_clip.npz` and `transformers_clip.json` from the package transformers, which is not a dependency.

    pip install --no-deps --target /tmp/packages transformers tokenizers
    PYTHONPATH=/tmp/packages python tests/reference/record_transformers.py [OUT]

A small CLIPModel with random weights, drawn by its own names; once with each activation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference.recipe import CONTEXT, EMBED, LAYERS, PATCH, SIZE, VOCABULARY, WIDTH, clips, drawn  # noqa: E402

TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH // 64,
    "projection_dim": EMBED,
}
TOKENS = [[49406, 320, 1125, 539, 49407], [49406, 4173, 267, 49407]]
"""Start, words of CLIP's vocabulary, end."""


def main(out: Path) -> None:
    import transformers  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__, "tokens": TOKENS}
    for act in ("quick_gelu", "gelu"):
        model = build(transformers, act)
        about["shapes"] = {name: list(value.shape) for name, value in model.state_dict().items()}
        pictures = torch.from_numpy(clips(1)[0, :4]).float() / 255
        ids = torch.zeros(len(TOKENS), CONTEXT, dtype=torch.int64)
        for row, tokens in enumerate(TOKENS):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
            text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        arrays |= {f"{act}/image": image.numpy(), f"{act}/text": text.numpy()}
    np.savez_compressed(out / "transformers_clip.npz", **arrays)
    (out / "transformers_clip.json").write_text(json.dumps(about, indent=1) + "\n")


def build(transformers: Any, act: str) -> Any:
    vision = {**TOWER, "image_size": SIZE, "patch_size": PATCH, "hidden_act": act}
    text = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_act": act, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBED)
    model = transformers.CLIPModel(config).eval()
    state = model.state_dict()
    floating = {name: tuple(value.shape) for name, value in state.items() if value.is_floating_point()}
    model.load_state_dict({**state, **{name: torch.from_numpy(np.asarray(x)) for name, x in drawn(floating).items()}})
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
