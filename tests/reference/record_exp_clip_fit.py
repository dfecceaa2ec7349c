"""Record `exp_clip_fit.npz` from a checkout of the released code of Exp-CLIP.

    python tests/reference/record_exp_clip_fit.py CHECKOUT [OUT]

The released `train.py` is imported, and its function `train` called on its model. What the pictures hold stands in the
place of CLIP's and the teacher's features, a small head in that of the released one. Calls of `.cuda()` do nothing.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import packaging.version
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference import exp_clip_fit_recipe as recipe  # noqa: E402


def main(checkout: Path, out: Path) -> None:
    """Write the arrays, and where they come from."""
    torch.set_num_threads(1)
    released = _released(checkout)
    model = _model(released)
    groups = [{"params": model.projection_head.parameters(), "lr": recipe.LR}]
    optimizer = torch.optim.SGD(groups, lr=recipe.LR, momentum=recipe.MOMENTUM, weight_decay=recipe.DECAY)
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    step = optimizer.step

    def noted(*given: Any, **how: Any) -> Any:
        gradients.append(model.projection_head.mlp.weight.grad.clone())
        return step(*given, **how)

    optimizer.step = noted  # type: ignore[method-assign]
    update = released.AverageMeter.update
    released.AverageMeter.update = lambda self, value, n=1: (losses.append(float(value)), update(self, value, n))
    loader = [(torch.from_numpy(batch), None) for batch in recipe.pictures()]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with contextlib.redirect_stdout(None):
            released.train(loader, model, nn.CrossEntropyLoss(), optimizer, 0, SimpleNamespace(print_freq=1), str(log))
    arrays = {
        "losses": np.array(losses[0::2], np.float64),
        "accuracies": np.array(losses[1::2], np.float64),
        "gradient": gradients[0].numpy(),
        "head": model.projection_head.mlp.weight.detach().numpy(),
    }
    np.savez_compressed(out / "exp_clip_fit.npz", **arrays)
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    about = {"repository": "zengqunzhao/Exp-CLIP", "commit": done.stdout.strip(), "torch": torch.__version__}
    (out / "exp_clip_fit.json").write_text(json.dumps(about, indent=1) + "\n")


def _released(checkout: Path) -> Any:
    """Import the released training."""
    sys.path.insert(0, str(checkout))
    _replace("lavis")
    _replace("lavis.models", load_model_and_preprocess=None)
    _replace("pkg_resources", packaging=packaging)
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *given, **how: self  # type: ignore[method-assign,assignment]
    sys.argv = ["train.py", "--seed", "1", "--batch-size", str(recipe.BATCH), "--load-model", "CLIP_B32"]
    spec = importlib.util.spec_from_file_location("released_train", checkout / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(name: str, **holds: Any) -> None:
    """Put a module with these contents in the place of one that the code imports."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(holds)


def _model(released: Any) -> Any:
    """The released model without its constructor, which loads CLIP and the teacher."""
    model = released.ExpCLIP_Train.__new__(released.ExpCLIP_Train)
    nn.Module.__init__(model)
    model.projection_head = sys.modules["models.Exp_CLIP"].Linear_Matrix()
    model.projection_head.mlp = nn.Linear(recipe.STUDENT, recipe.TEACHER, bias=False)
    model.projection_head.mlp.weight.data.copy_(torch.from_numpy(recipe.head()))
    model.tokens = None
    model.clip_model = nn.Module()
    model.clip_model.logit_scale = nn.Parameter(torch.tensor(np.log(recipe.SCALE)), requires_grad=False)
    flat = lambda images: images.flatten(1).numpy()  # noqa: E731
    model.clip_model.encode_image = lambda images: torch.from_numpy(recipe.student(flat(images)))
    model.blip2 = nn.Module()
    model.blip2.generate = lambda given: (None, torch.from_numpy(recipe.tokens(flat(given["image"]))))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
