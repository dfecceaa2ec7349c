"""Record `coop.npz` and `coop.json` from a checkout of the released code of CoOp and Co-CoOp.

    python tests/reference/record_coop.py CHECKOUT [OUT]

The checkout is imported as it is. Its toolbox Dassl, which the models do not use, is replaced by empty modules. This
file only draws weights and inputs and writes down what comes out.
"""

import json
import math
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
from tests.reference.coop_recipe import (  # noqa: E402
    CASES,
    CLASSES,
    DECAY,
    EMBED,
    MOMENTUM,
    RATE,
    SCALE,
    STEPS,
    Case,
    clip_shapes,
    drawn,
    new_shapes,
    pictures,
)
from tests.reference.recipe import CONTEXT, LAYERS, PATCH, SIZE, VOCABULARY, WIDTH  # noqa: E402


def main(checkout: Path, out: Path) -> None:
    """Write both files."""
    _replace_missing_packages()
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    for case in CASES:
        arrays |= {f"{case.name}/{name}": value for name, value in record(case).items()}
    np.savez_compressed(out / "coop.npz", **arrays)
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    about = {"repository": "KaiyangZhou/CoOp", "commit": done.stdout.strip(), "torch": torch.__version__}
    (out / "coop.json").write_text(json.dumps(about, indent=1) + "\n")


def _replace_missing_packages() -> None:
    """Stand-ins for Dassl, which only trains and registers, and for what setuptools no longer has."""
    registry = types.SimpleNamespace(register=lambda: lambda kind: kind)
    empty = {"TRAINER_REGISTRY": registry, "TrainerX": object}
    empty |= dict.fromkeys(("compute_accuracy", "load_pretrained_weights", "load_checkpoint"))
    empty |= dict.fromkeys(("build_optimizer", "build_lr_scheduler"))
    for name in ("dassl", "dassl.engine", "dassl.metrics", "dassl.utils", "dassl.optim"):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(empty)
    sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)  # type: ignore[assignment]


def record(case: Case) -> dict[str, np.ndarray]:
    """Logits, gradients of the cross entropy (labels 0, 1, 2), and the parameters after five steps."""
    from clip.model import CLIP
    from trainers import cocoop, coop

    clip = CLIP(EMBED, SIZE, LAYERS, WIDTH, PATCH, CONTEXT, VOCABULARY, WIDTH, WIDTH // 64, LAYERS)
    weights = {name: torch.from_numpy(np.asarray(x)) for name, x in drawn(clip_shapes()).items()}
    clip.load_state_dict({**weights, "logit_scale": torch.tensor(math.log(SCALE))})
    keys = {"N_CTX": case.contexts, "CTX_INIT": case.words, "CSC": not case.shared, "PREC": "fp32"}
    method = types.SimpleNamespace(**keys, CLASS_TOKEN_POSITION=case.position)
    trainer = types.SimpleNamespace(COOP=method, COCOOP=method)
    config = types.SimpleNamespace(TRAINER=trainer, INPUT=types.SimpleNamespace(SIZE=(SIZE, SIZE)))
    model = (coop if case.method == "coop" else cocoop).CustomCLIP(config, list(CLASSES), clip)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_learner" in name)
    new = {name: torch.from_numpy(x) for name, x in drawn(new_shapes(case)).items()}
    model.prompt_learner.load_state_dict(new, strict=False)
    return measured(model.eval())


def measured(model: Any) -> dict[str, np.ndarray]:
    """Run the model; in evaluation mode both methods return logits."""
    shown, learner = torch.from_numpy(pictures()).float() / 255, model.prompt_learner
    optimizer = torch.optim.SGD(learner.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    out: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(shown)
        torch.nn.functional.cross_entropy(logits, torch.arange(len(shown))).backward()
        if step == 0:
            out["logits"] = logits.detach().numpy()
            out |= {f"grad/{name}": p.grad.clone().numpy() for name, p in learner.named_parameters()}
        optimizer.step()
    out |= {f"after/{name}": p.detach().numpy().copy() for name, p in learner.named_parameters()}
    return {**out, "after/logits": model(shown).detach().numpy()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
