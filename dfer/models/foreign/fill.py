"""Load weights that a method's authors published into this project's model, by the method's map of names.

A map is a function `ours(weights) -> weights` of a module here. It uses every name, or leaves it out as a known
duplicate after checking it. Adding one is an arm of `fill_foreign` and a name in METHODS.
"""

from pathlib import Path

from dfer.config import ConfigProblem
from dfer.emotions import Emotions
from dfer.errors import message
from dfer.models.cnn import Cnn
from dfer.models.dfer_clip import DferClip
from dfer.models.dk_clip import DkClip
from dfer.models.foreign import cnn, dk_clip
from dfer.models.foreign.released import fill_released, left_out
from dfer.models.foreign.weights import Weights
from dfer.models.saved import fill
from dfer.recognition import Recognizer

METHODS = ("dfer_clip", "dk_clip", "cnn")
"""Methods whose published files can be imported."""


def fill_foreign(model: Recognizer, weights: Weights, path: Path, emotions: Emotions) -> dict[str, str]:
    """Load a published file's weights into a method's model, all or none. Returns the names that are left out, each
    with the reason.

    Raises:
        CheckpointError: the file is of another method, backbone, number of classes or frames.
    """
    match model:
        case DferClip():
            fill_released(model, weights, path, emotions)
            return left_out(weights, path)
        case DkClip():
            fill(model, dk_clip.ours(weights), where=path)
            return {}
        case Cnn():
            fill(model, cnn.ours(weights, where=path), where=path)
            return {}
    raise AssertionError("check_method comes first")


def check_method(name: str) -> None:
    """Raise ConfigProblem for a method of which no published files are known."""
    if name not in METHODS:
        expected, do = f"a method with published files: {', '.join(METHODS)}", "Choose one of them."
        raise ConfigProblem(message("--method", expected=expected, got=name, do=do))
