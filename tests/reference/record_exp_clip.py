"""Record `exp_clip.npz` and `exp_clip.json` from a checkout of the released code of Exp-CLIP.

    python tests/reference/record_exp_clip.py CHECKOUT [OUT]

The released `test.py` is imported and its function `zero_shot_test` called as it is, in a folder that holds what it
reads: pictures, a list of clips and a head. Its teacher, which testing does not use, its network connection and its GPU
are replaced: `lavis` by an empty module, `clip.load` by a small CLIP with drawn weights, calls of `.cuda()` and of
`.to('cuda')` by nothing. The logits are taken from the `argmax` that it calls on them.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import packaging.version
import torch
from torch.utils.data import DataLoader
from torchvision import datasets

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference import exp_clip_recipe as recipe  # noqa: E402
from tests.reference.recipe import CONTEXT, LAYERS, VOCABULARY, WIDTH  # noqa: E402

JOB = "recorded"


def main(checkout: Path, out: Path) -> None:
    """Write both files."""
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for stored in recipe.STORED:
            _prepare(Path(folder), stored)
            released = _released(checkout, Path(folder) / stored)
            for number, kind in enumerate(recipe.KINDS):
                prompts = released.FER_prompt_list[number]
                for name, dataset, task in (("pictures", "RAFDB", "Static_FER"), ("clips", "DFEW", "Dynamic_FER")):
                    with _captured() as logits:
                        scores = released.zero_shot_test(0, dataset, task, prompts, f"type{number + 1}")
                    arrays[f"{stored}/{kind}/{name}"] = torch.cat(logits).numpy()
                    arrays[f"{stored}/{kind}/{name}/scores"] = np.array(scores)
    ensembles = {f"ensemble_{len(found[0])}": found for found in map(_by_class, released.FER_prompt_list[3:])}
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    about = {"repository": "zengqunzhao/Exp-CLIP", "commit": done.stdout.strip(), "torch": torch.__version__}
    about["ensembles"] = {name: sum(map(len, found)) for name, found in ensembles.items()}  # type: ignore[assignment]
    np.savez_compressed(out / "exp_clip.npz", **arrays)
    (out / "exp_clip.json").write_text(json.dumps(about, indent=1) + "\n")


def _by_class(prompts: dict[str, list[str]]) -> list[list[str]]:
    """The texts of each of MAFW's eleven classes."""
    texts, each = prompts["MAFW"], len(prompts["MAFW"]) // 11
    return [texts[at : at + each] for at in range(0, len(texts), each)]


def _prepare(folder: Path, stored: str) -> None:
    """Write what the released test reads; folders of classes have names that sort in its order."""
    names = tuple(f"{k}_{name}" for k, name in enumerate(recipe.CLASSES))
    recipe.write_pictures(folder / stored / "raf", names, stored=stored)
    clips = recipe.write_clips(folder / stored / "clips", stored=stored)
    (folder / "annotation").mkdir(exist_ok=True)
    lines = [f"{path} {length} {k}" for k, (path, length) in enumerate(zip(clips, recipe.LENGTHS, strict=True))]
    (folder / "annotation" / "DFEW_set_1_test.txt").write_text("\n".join(lines))
    for name in ("checkpoint", "confusion_matrix"):
        (folder / name).mkdir(exist_ok=True)
    torch.save({"mlp.weight": torch.from_numpy(recipe.head())}, folder / "checkpoint" / f"{JOB}-model.pth")


def _released(checkout: Path, folder: Path) -> Any:
    """Import the released test."""
    sys.path.insert(0, str(checkout))
    _replace("lavis")
    _replace("lavis.models", load_model_and_preprocess=None)
    _replace("pkg_resources", packaging=packaging)
    _replace("requests")
    _replace("sklearn")
    _replace("sklearn.metrics", confusion_matrix=_counts)
    _without_gpu()
    from models.clip import clip
    from models.clip.model import CLIP

    model = CLIP(512, 224, LAYERS, WIDTH, recipe.PATCH, CONTEXT, VOCABULARY, WIDTH, WIDTH // 64, LAYERS)
    model.load_state_dict({name: torch.from_numpy(np.asarray(x)) for name, x in recipe.clip_weights().items()})
    clip.load = lambda name, device: (model.eval(), None)
    sys.argv = ["test.py", "--load-model", "CLIP_B32", "--job-id", JOB]
    spec = importlib.util.spec_from_file_location("released_test", checkout / "test.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures, loader = datasets.ImageFolder, DataLoader
    module.datasets = types.SimpleNamespace(ImageFolder=lambda path, change: pictures(str(folder / "raf"), change))
    torch.utils.data.DataLoader = lambda *given, **how: loader(*given, **{**how, "num_workers": 0})  # type: ignore
    return module


def _replace(name: str, **holds: Any) -> None:
    """Put a module with these contents in the place of one that the code imports."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(sys.modules[name]).update(holds)


TO = torch.Tensor.to


def _without_gpu() -> None:
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *given, **how: self  # type: ignore
    torch.Tensor.to = lambda self, *given, **how: self if given == ("cuda",) else TO(self, *given, **how)  # type: ignore


def _counts(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What sklearn.metrics.confusion_matrix gives."""
    counts = np.zeros((len(recipe.CLASSES),) * 2, np.int64)
    np.add.at(counts, (labels, predicted.ravel()), 1)
    return counts


@contextlib.contextmanager
def _captured() -> Any:
    """Collect the tensors of which the test takes the predictions."""
    argmax, found = torch.Tensor.argmax, []

    def noted(self: torch.Tensor, *given: Any, **how: Any) -> torch.Tensor:
        if how.get("keepdim"):
            found.append(self.detach().clone())
        return argmax(self, *given, **how)

    torch.Tensor.argmax = noted  # type: ignore
    try:
        yield found
    finally:
        torch.Tensor.argmax = argmax  # type: ignore


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main(Path(sys.argv[1]).resolve(), (Path(sys.argv[2]) if len(sys.argv) > 2 else HERE).resolve())
