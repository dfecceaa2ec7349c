"""Record `fmix.npz` from a checkout of the released DK-CLIP code (github liliupeng28/DK-CLIP).

    python tests/reference/record_fmix.py CHECKOUT [OUT]

The checkout's `datasets/blending.py` is imported as it is. Its noise is drawn from numpy's legacy generator with the
seed of the case, whose stream never changes, so that the tests draw the same. `up` forces its coin: whether the number
of pixels is rounded up.
"""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.reference.fmix_cases import CASES  # noqa: E402


def main(checkout: Path, out: Path) -> None:
    blending, arrays = _import(checkout / "datasets" / "blending.py"), {}
    for case in CASES:
        np.random.seed(case.seed)
        image = blending.make_low_freq_image(case.decay, (case.height, case.width))
        random.random = lambda up=case.up: 0.9 if up else 0.1  # type: ignore[misc]
        mask = blending.binarise_mask(image.copy(), case.share, (case.height, case.width))
        arrays[f"{case.name}/image"] = image[0, ::7, ::7].astype(np.float32)
        arrays[f"{case.name}/mask"] = np.packbits(mask[0].astype(bool))
    np.savez_compressed(out / "fmix.npz", **arrays)


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("blending", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
