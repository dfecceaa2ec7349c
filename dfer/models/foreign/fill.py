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


def fill_foreign(
    model: Recognizer, weights: Weights, path: Path, emotions: Emotions, *, dataset: str = ""
) -> dict[str, str]:
    """Load a published file's weights into a method's model, all or none. Returns the names that are left out, each
    with the reason.

    emotions: the model's classes. dataset: what the file was trained on, which gives the class order where the weights
    have rows of classes and no texts tell their order (the CNNs).

    Raises:
        CheckpointError: the file is of another method, backbone, number of classes or frames.
        ConfigProblem: the class order of the file is not known, or its classes are others.
    """
    match model:
        case DferClip():
            fill_released(model, weights, path, emotions)
            return left_out(weights, path)
        case DkClip():
            found = dk_clip.ours(weights, where=path)
            if dk_clip.is_x_clip(weights):
                copied = model.config.second_encoder == "clip"
                found = dk_clip.extended(found, model.state_dict(), copied=copied, where=path)
            fill(model, found, where=path)
            return dk_clip.left_out(weights)
        case Cnn():
            named = cnn.ours(weights, where=path)
            fill(model, cnn.in_order(named, dataset=dataset, classes=emotions.names, where=path), where=path)
            return {}
    raise AssertionError("check_method comes first")


def start_of(name: str, weights: Weights) -> str:
    """Describe what a file is if it gives a method its start alone: a model of another method, which has parts of this
    one. Empty if the file is of the method itself."""
    if name != "dk_clip" or not dk_clip.is_x_clip(weights):
        return ""
    return "an X-CLIP, its positions averaged over the frames of snippets; the second encoder is not in it"


def check_method(name: str) -> None:
    """Raise ConfigProblem for a method of which no published files are known."""
    if name not in METHODS:
        expected, do = f"a method with published files: {', '.join(METHODS)}", "Choose one of them."
        raise ConfigProblem(message("--method", expected=expected, got=name, do=do))


def check_fold(name: str, dataset: str, protocol: str | None) -> None:
    """Raise ConfigProblem if a fold is given of a protocol that the authors did not train on, since the test clips of
    such a fold may be ones that they trained on. protocol: of the fold, None if no fold is given."""
    trained = cnn.PROTOCOLS.get(dataset) if name == "cnn" else None
    if trained is not None and protocol is not None and protocol != trained:
        do = f"Add data.protocol={trained}, or leave --fold out."
        expected = f"{trained}, whose folds the authors trained on"
        raise ConfigProblem(message("data.protocol", expected=expected, got=protocol, do=do))
