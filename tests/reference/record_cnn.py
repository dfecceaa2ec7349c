"""Record `cnn.npz` and `cnn.json` from a checkout of the released CNN code.

    python tests/reference/record_cnn.py CHECKOUT [OUT]

The checkout is imported as it is; this file draws weights and inputs, trains as mainpro_FER.py does, and writes down
what comes out.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference import recipe_cnn as recipe  # noqa: E402


def main(checkout: Path, out: Path) -> None:
    os.popen = lambda *_: io.StringIO("24 80")  # type: ignore[assignment,misc,return-value]  # utils.py asks for the terminal
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)
    from models import VGG, ResNet18

    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"commit": commit(checkout), "torch": torch.__version__, "nets": {}}
    for name, net in {"vgg19": VGG("VGG19"), "resnet18": ResNet18()}.items():
        shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        weights = {key: torch.from_numpy(value) for key, value in recipe.drawn(shapes).items()}
        net.load_state_dict(weights, strict=False)
        about["nets"][name] = {"shapes": shapes}
        arrays |= {f"{name}/{key}": value for key, value in record(net).items()}
    np.savez_compressed(out / "cnn.npz", **arrays)
    (out / "cnn.json").write_text(json.dumps(about) + "\n")


def record(net: Any) -> dict[str, np.ndarray]:
    """Logits in both modes and the gradient; then weights, buffers and losses of five steps in double precision."""
    pictures = torch.from_numpy(recipe.pictures()).float() / 255
    with torch.no_grad():
        found = {"eval_logits": net.eval()(pictures).numpy()}
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(recipe.dropout_seed(0))
    outputs = net.train()(pictures)
    torch.nn.CrossEntropyLoss()(outputs, torch.from_numpy(recipe.labels())).backward()
    gradients = {key: value.grad.numpy() for key, value in net.named_parameters()}
    found |= {f"gradient_{key}": value for key, value in recipe.digest(gradients).items()}
    found["clamped"] = np.array(sum(int((np.abs(value) > recipe.CLAMP).sum()) for value in gradients.values()))
    net.load_state_dict(weights)
    return {**found, "train_logits": outputs.detach().numpy(), **steps(net.double())}


def steps(net: Any) -> dict[str, np.ndarray]:
    """Train as mainpro_FER.py does."""
    import utils

    pictures = torch.from_numpy(recipe.step_pictures()).double() / 255
    labels = torch.from_numpy(recipe.labels()[: recipe.STEP_PICTURES])
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.DECAY)
    losses = []
    for step in range(recipe.STEPS):
        net.train()
        torch.manual_seed(recipe.dropout_seed(step))
        optimizer.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(net(pictures), labels)
        loss.backward()
        utils.clip_gradient(optimizer, recipe.CLAMP)
        optimizer.step()
        losses.append(loss.item())
    state = {key: value.numpy() for key, value in net.state_dict().items() if value.is_floating_point()}
    found = {f"after_{key}": value for key, value in recipe.digest(state).items()}
    with torch.no_grad():
        found["after_logits"] = net.eval()(pictures).numpy()
    return {**found, "losses": np.array(losses)}


def commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
