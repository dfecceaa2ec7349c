"""Record `clivp_fer.npz` and `clivp_fer.json` from a checkout of the released CLIVP-FER code.

    python tests/reference/record_clivp_fer.py CHECKOUT [OUT]

CLIP_KMU.py, the training script, does not parse. KMUconfmtrx.py repeats its classifier and its way from features to
logits, so the class and these statements are run out of that file as they are, with a CLIP that returns drawn features.
"""

import ast
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference import recipe_cnn as recipe  # noqa: E402
from tests.reference.record_cnn import commit  # noqa: E402

SCRIPT, NET = "KMUconfmtrx.py", "CustomNet"


def main(checkout: Path, out: Path) -> None:
    torch.set_num_threads(1)
    tree = ast.parse((checkout / SCRIPT).read_text())
    names = {"torch": torch, "nn": torch.nn}
    run([node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == NET], names)
    forward = next(node.body for node in ast.walk(tree) if isinstance(node, ast.With))
    net = names[NET](num_classes=recipe.CAPTIONS, feature_dim=384)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in recipe.drawn(shapes).items()})
    about = {
        "commit": commit(checkout),
        "torch": torch.__version__,
        "shapes": shapes,
        "captions": captions(ast.parse((checkout / "formatdescription.py").read_text())),
    }
    np.savez_compressed(out / "clivp_fer.npz", **record(net, forward, names))
    (out / "clivp_fer.json").write_text(json.dumps(about, indent=1) + "\n")


def run(nodes: Any, names: dict[str, Any]) -> None:
    exec(compile(ast.Module(body=list(nodes), type_ignores=[]), SCRIPT, "exec"), names)


def captions(tree: ast.Module) -> list[str]:
    """The captions in class order."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if text.startswith("A facial expression")]


def record(net: Any, forward: Any, names: dict[str, Any]) -> dict[str, np.ndarray]:
    """The head's input and logits, the first gradient, and weights and losses of five steps of Adam."""
    labels = torch.from_numpy(recipe.face_labels())
    clip = types.SimpleNamespace(
        encode_image=lambda _: torch.from_numpy(recipe.image_features()),
        encode_text=lambda _: torch.from_numpy(recipe.text_features()[recipe.face_labels()]),
    )
    known = {**names, "clip_model": clip, "opt": types.SimpleNamespace(mode=1), "net": net}
    known |= {"images": None, "captions": None, "avg_pool": torch.nn.AvgPool1d(kernel_size=2)}
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.HEAD_LR, weight_decay=recipe.HEAD_DECAY)
    net.eval()
    run(forward, known)
    found = {"features": known["features"].numpy(), "eval_logits": known["test_pred"].detach().numpy()}
    losses = []
    for step in range(recipe.HEAD_STEPS):
        net.train()
        torch.manual_seed(recipe.dropout_seed(step))
        optimizer.zero_grad()
        run(forward, known)
        loss = torch.nn.CrossEntropyLoss()(known["test_pred"], labels)
        loss.backward()
        if step == 0:
            found["train_logits"] = known["test_pred"].detach().numpy()
            gradients = {key: value.grad.numpy() for key, value in net.named_parameters()}
            found |= {f"gradient_{key}": value for key, value in recipe.digest(gradients).items()}
        optimizer.step()
        losses.append(loss.item())
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    found |= {f"after_{key}": value for key, value in recipe.digest(state).items()}
    return {**found, "losses": np.array(losses)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
