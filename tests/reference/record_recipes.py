"""Record `recipes.npz` and `recipes.json` from checkouts of four releases: what their transforms make of pictures, and
the numbers that they drew.

    python tests/reference/record_recipes.py FOLDER [OUT]

FOLDER holds the checkouts DFER-CLIP, DK-CLIP, Facial-Expression-Recognition.Pytorch and CoOp. DK-CLIP's transforms call
a library (mmcv 1.x) for four small functions; a stand-in gives them, with OpenCV as that library has it.
"""

import importlib
import json
import random
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torchvision
from PIL import Image, __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference.pictures import picture  # noqa: E402

SIZE = 56
SHAPES = ((64, 64), (80, 60), (50, 72))
"""Heights and widths of the stored pictures."""
arrays: dict[str, np.ndarray] = {}
draws: dict[str, Any] = {}


def main(folder: Path, out: Path) -> None:
    names = {
        "DFER-CLIP": dfer_clip,
        "DK-CLIP": dk_clip,
        "Facial-Expression-Recognition.Pytorch": cnn,
        "CoOp": clip,
    }
    for name, record in names.items():
        record(folder / name)
    commits = {name: _commit(folder / name) for name in names}
    versions = {"torchvision": torchvision.__version__, "Pillow": __version__, "opencv": cv2.__version__}
    np.savez_compressed(out / "recipes.npz", **arrays)
    about = {"commits": commits, "versions": versions, "draws": draws}
    (out / "recipes.json").write_text(json.dumps(about, indent=1) + "\n")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _load(name: str, path: Path, package: str | None = None) -> Any:
    """Import one file of a checkout under a name, inside a package without running the package's own start."""
    if package:
        made = types.ModuleType(package)
        made.__path__ = [str(path.parent)]
        sys.modules[package] = made
    spec = importlib.util.spec_from_file_location(f"{package}.{name}" if package else name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _noting() -> Iterator[dict[str, Any]]:
    """Note what a transform asks of Pillow (crop, rotation, flip), and the brightness it asks of torchvision."""
    calls: dict[str, Any] = {}
    functional, names = torchvision.transforms.functional, ("crop", "rotate", "transpose")
    own = {name: getattr(Image.Image, name) for name in names}
    bright = functional.adjust_brightness

    def noted(name: str) -> Any:
        def call(self: Any, *args: Any, **rest: Any) -> Any:
            calls[name] = [float(x) for x in np.ravel(args[0])]
            return own[name](self, *args, **rest)

        return call

    def noted_brightness(image: Any, factor: float) -> Any:
        calls["brightness"] = factor
        return bright(image, factor)

    for name in names:
        setattr(Image.Image, name, noted(name))
    functional.adjust_brightness = noted_brightness
    yield calls
    for name in names:
        setattr(Image.Image, name, own[name])
    functional.adjust_brightness = bright


def dfer_clip(checkout: Path) -> None:
    """Training in the order of its data loader (DFEW: brightness; FERV39k: rotation), and the test."""
    module = _load("video_transform", checkout / "dataloader" / "video_transform.py")
    for number, (height, width) in enumerate(SHAPES * 2):
        random.seed(number)
        first = module.ColorJitter(brightness=0.5) if number < len(SHAPES) else module.RandomRotation(4)
        group = [Image.fromarray(picture(height, width, number))]
        with _noting() as calls:
            for transform in (first, module.GroupRandomSizedCrop(SIZE), module.GroupRandomHorizontalFlip()):
                group = transform(group)
        arrays[f"dfer_clip/{number}"] = np.asarray(group[0])
        draws[f"dfer_clip/{number}"] = calls
    for number, (height, width) in enumerate(SHAPES):
        group = [Image.fromarray(picture(height, width, number))]
        arrays[f"dfer_clip/test/{number}"] = np.asarray(module.GroupResize(SIZE)(group)[0])


def _mmcv() -> None:
    """The functions of mmcv 1.x that DK-CLIP's transforms call."""

    def rescale_size(old: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
        factor = min(max(scale) / max(old), min(scale) / min(old))
        return int(old[0] * factor + 0.5), int(old[1] * factor + 0.5)

    def flip(image: np.ndarray, direction: str) -> np.ndarray:
        return cv2.flip(image, 1, image)

    class Registry:
        def __init__(self, name: str) -> None: ...

        def register_module(self) -> Any:
            return lambda made: made

    mmcv, utils, fileio = (types.ModuleType(name) for name in ("mmcv", "mmcv.utils", "mmcv.fileio"))
    mmcv.imresize = lambda image, size, interpolation: cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    mmcv.rescale_size, mmcv.imflip_ = rescale_size, flip
    mmcv.is_tuple_of = lambda values, kind: all(isinstance(value, kind) for value in values)
    utils.Registry, utils.build_from_cfg, fileio.FileClient = Registry, None, None
    sys.modules |= {"mmcv": mmcv, "mmcv.utils": utils, "mmcv.fileio": fileio}


def dk_clip(checkout: Path) -> None:
    """Training up to the flip; the colours of two clips; the test; three crops; sampling."""
    _mmcv()
    module = _load("pipeline", checkout / "datasets" / "pipeline.py", package="dk_datasets")
    short = int(256 / 224 * SIZE)
    for number, (height, width) in enumerate(SHAPES * 2):
        seed = 20 + number
        random.seed(seed)
        np.random.seed(seed)
        results = _frames(height, width, seed)
        _through(results, [module.Resize((-1, short))])
        crop = module.MultiScaleCrop(SIZE, scales=(1, 0.875, 0.75, 0.66), random_crop=False, max_wh_scale_gap=1)
        _through(results, [crop, module.Resize((SIZE, SIZE), keep_ratio=False), module.Flip(flip_ratio=0.5)])
        arrays[f"dk_clip/{number}"] = results["imgs"][0]
        draws[f"dk_clip/{number}"] = {"crop": [int(x) for x in results["crop_bbox"]], "flip": bool(results["flip"])}
    _dk_clip_colours(module)
    for number, (height, width) in enumerate(SHAPES):
        results = _frames(height, width, 20 + number)
        _through(results, [module.Resize((-1, short)), module.CenterCrop(SIZE)])
        arrays[f"dk_clip/test/{number}"] = results["imgs"][0]
        results = _frames(height, width, 20 + number)
        _through(results, [module.Resize((-1, SIZE)), module.ThreeCrop(SIZE)])
        arrays[f"dk_clip/three/{number}"] = np.stack(results["imgs"])
    _dk_clip_sampling(module)


def _frames(height: int, width: int, seed: int) -> dict[str, Any]:
    return {"imgs": [picture(height, width, seed)], "img_shape": (height, width), "modality": "RGB"}


def _through(results: dict[str, Any], transforms: list[Any]) -> None:
    for transform in transforms:
        transform(results)


def _dk_clip_colours(module: Any) -> None:
    """Jitter of a clip of two frames, with what was drawn for each; a grey clip."""
    jitter, drawn = module.ColorJitter(p=1.0), []
    own = torchvision.transforms.ColorJitter.get_params

    def noted(*args: Any) -> Any:
        order, *factors = own(*args)
        drawn.append({"order": order.tolist(), "factors": factors})
        return order, *factors

    jitter.worker.get_params = noted
    frames = [picture(32, 32, 40 + number) for number in range(2)]
    results = {"imgs": list(frames)}
    jitter(results)
    arrays["dk_clip/jitter"] = np.stack(results["imgs"])
    draws["dk_clip/jitter"] = drawn
    results = {"imgs": list(frames)}
    module.GrayScale(p=1.0)(results)
    arrays["dk_clip/grey"] = np.stack(results["imgs"])


def _dk_clip_sampling(module: Any) -> None:
    """Test positions of clips of 1 to 60 frames, and training positions of those of fewer than 16."""
    for name, test, counts in (("test", True, range(1, 61)), ("train", False, range(1, 16))):
        sample = module.SampleFrames(clip_len=1, num_clips=16, test_mode=test)
        found = [sample({"total_frames": count, "start_index": 0})["frame_inds"] for count in counts]
        arrays[f"dk_clip/sampling/{name}"] = np.stack(found).astype(np.int16)


def cnn(checkout: Path) -> None:
    """Random crops of 44 of 48 with what was drawn, and ten crops."""
    functional = _load("functional", checkout / "transforms" / "functional.py", package="cnn_transforms")
    sys.modules["cnn_transforms"].functional = functional  # type: ignore[attr-defined]
    loaded = importlib.import_module("cnn_transforms.transforms")
    for number in range(4):
        random.seed(number)
        with _noting() as calls:
            image = loaded.RandomHorizontalFlip()(loaded.RandomCrop(44)(Image.fromarray(picture(48, 48, number))))
        arrays[f"cnn/{number}"] = np.asarray(image)
        draws[f"cnn/{number}"] = calls
    crops = loaded.TenCrop(44)(Image.fromarray(picture(48, 48, 9)))
    arrays["cnn/ten"] = np.stack([np.asarray(crop) for crop in crops])


def clip(checkout: Path) -> None:
    """CLIP's test input, before it is scaled and normalised."""
    sys.path.insert(0, str(checkout))
    module = importlib.import_module("clip.clip")
    for number, (height, width) in enumerate(SHAPES):
        image = Image.fromarray(picture(height, width, number))
        for transform in module._transform(SIZE).transforms[:2]:
            image = transform(image)
        arrays[f"clip/test/{number}"] = np.asarray(image)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
