"""The model card of a saved model: README.md with front matter for the Hugging Face hub. Imports no torch.

The text depends on the arguments alone, so that the same model gives the same card.
"""

import shlex

import yaml

from dfer.choices import LEAKS_LABEL, SELECTION_TEXT
from dfer.models.config_clivp_fer import ClivpFerConfig, CnnConfig
from dfer.models.files import trains_nothing
from dfer.models.saved import Origin, SavedConfig, Score, TrainedSet

SETS = {
    "dfew": "DFEW",
    "ferv39k": "FERV39k",
    "mafw": "MAFW",
    "afew": "AFEW",
    "affectnet7": "AffectNet-7",
    "affectnet8": "AffectNet-8",
    "ckplus": "CK+",
    "ckplus48": "CK+48",
    "fer2013": "FER2013",
    "ferplus": "FERPlus",
    "kmu_fed": "KMU-FED",
    "raf_db": "RAF-DB",
}
"""Names of the data sets of configs/sets for readers."""
LICENCE = (
    "dfer's code is under Apache-2.0. These weights may be bound by more than that: by the licence of the weights that "
    "the training began with, of the file that was imported, and by the terms of the data set, which usually allow "
    "academic research only. Ask their owners before you publish or sell anything made with them."
)
CROPS = (
    "{what} are crops of one face, as the data set delivers them{delivered}. Scores on other crops are not comparable; "
    "find{track} and crop faces as that data set did, with the same margin."
)


def card(found: SavedConfig) -> str:
    """Return the text of README.md."""
    return f"---\n{_front(found)}---\n\n{_body(found)}"


def _front(found: SavedConfig) -> str:
    """YAML for the hub. The licence is `other`: what binds the weights is said in the text."""
    front: dict[str, object] = {
        "library_name": "dfer",
        "pipeline_tag": _task(found),
        "license": "other",
        "license_name": "see-card",
        "tags": ["facial-expression-recognition", found.model.name],
    }
    if found.score is not None:
        front["model-index"] = [{"name": found.model.name, "results": [_result(found, found.score)]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _result(found: SavedConfig, score: Score) -> dict[str, object]:
    mark = f", {LEAKS_LABEL}" if score.leaks_label else ""
    scores = {
        f"WAR (accuracy){mark}": ("accuracy", score.war),
        f"UAR (mean recall of the classes){mark}": ("recall", score.uar),
    }
    what = "pictures" if _still(found) else "video"
    return {
        "task": {"type": _task(found), "name": f"Facial expression recognition in {what}"},
        "dataset": {"type": found.origin.dataset, "name": _set(found.origin), "split": _fold(found.origin)},
        "metrics": [{"type": kind, "name": name, "value": round(v, 6)} for name, (kind, v) in scores.items()],
    }


def _still(found: SavedConfig) -> bool:
    """Whether a clip is a single picture."""
    return found.num_frames == 1


def _task(found: SavedConfig) -> str:
    """The hub's name of the task."""
    return "image-classification" if _still(found) else "video-classification"


def _set(origin: Origin | TrainedSet) -> str:
    name = SETS.get(origin.dataset, origin.dataset) or "unknown"
    return f"generated faces in {name}'s layout" if origin.generated else name


def _fold(origin: Origin | TrainedSet) -> str:
    return f"fold {origin.fold} of {origin.protocol or 'an unknown protocol'}" if origin.fold else "fold unknown"


def _further(origin: Origin) -> str:
    """Name the further sets that it was trained on, at the same time or before."""
    more = (f"{_set(each)}, {_fold(each)}" for each in origin.sets[1:])
    return "".join(f"; also on {text}" for text in more)


def _body(found: SavedConfig) -> str:
    origin, texts = found.origin, found.texts
    frames = "1 frame" if _still(found) else f"{found.num_frames} frames"
    rows = {
        "method": f"`{found.model.name}`{_backbone(found)}",
        "classes": ", ".join(found.classes),
        "input": f"{frames} of {found.data['size']} x {found.data['size']} pixels, RGB",
        "normalisation": f"{found.normalisation}; done by the model",
        **found.words,
        "trained on": f"{_set(origin)}, {_fold(origin)}{_further(origin)}"
        if origin.trained
        else "nothing: the weights are evaluated",
        "selection": _selection(origin),
        "score": _score(found),
        "source": _source(origin),
        "weights": f"`model.safetensors`, {found.bytes:,} bytes, sha256 `{found.sha256}`",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    said = "".join(
        f"- {name}: {text if isinstance(text, str) else ' / '.join(text)}\n"
        for name, text in zip(found.classes, texts or ())
    )
    return (
        f"# {_title(found)}\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n```sh\n{_use(found)}```\n\n"
        f"FOLDER is the folder of this file: a path, `s3://...`, `https://...`, or what "
        f"`huggingface_hub.snapshot_download` returns. Nothing in it is run when it is read.\n\n"
        f"## Crops\n\n{_crops(found)}\n\n"
        + (f"## Class texts\n\n{said}\n" if said else "")
        + f"## Licence\n\n{LICENCE}\n"
    )


def _selection(origin: Origin) -> str:
    """How the checkpoint was chosen, and how far the training had come if it had not ended."""
    if not origin.trained:
        return "none: nothing was trained"
    if origin.complete:
        return SELECTION_TEXT[origin.selection or "unknown"]
    chosen = "the newest checkpoint" if origin.selection == "last" else SELECTION_TEXT[origin.selection or "unknown"]
    return f"{chosen}; incomplete: epoch {origin.epoch} of {origin.epochs}"


def fold_words(origin: Origin) -> str:
    """Return the words of a command that choose the fold whose training clips the weights were trained on, each after
    a blank; none if it is not known."""
    if not origin.fold:
        return ""
    return (f" data.protocol={shlex.quote(origin.protocol)}" if origin.protocol else "") + f" fold={origin.fold}"


def _title(found: SavedConfig) -> str:
    if found.origin.made_by == "start":
        return f"A start for {found.model.name}, not trained on these classes"
    return f"{found.model.name} on {_set(found.origin)}"


def _crops(found: SavedConfig) -> str:
    named = SETS.get(found.origin.dataset)
    what, track = ("Pictures", "") if _still(found) else ("Frames", ", track")
    return CROPS.format(what=what, track=track, delivered=f" ({named})" if named else "")


def _use(found: SavedConfig) -> str:
    """The commands that take this model, a line each. A model that needs the true label predicts nothing."""
    own = f"sets/{found.origin.dataset}" if found.origin.dataset in SETS else "sets/SET"
    what = "a folder with the picture of a face" if _still(found) else "a folder of face frames"
    lines = {
        "dfer predict FOLDER clips/00001": what,
        f"dfer evaluate FOLDER {own} run=runs/x{fold_words(found.origin)}": "your shards of the data set",
        f"dfer train methods/{_method(found)} sets/SET{_same_towers(found)} model.start=FOLDER": "",
    }
    if isinstance(found.model, ClivpFerConfig) and found.model.leaks_label:
        del lines["dfer predict FOLDER clips/00001"]
    if trains_nothing(found.model):
        lines.popitem()
    if found.origin.made_by == "start":
        lines = dict([lines.popitem()])
    return "".join(f"{line:<50} # {said}\n" if said else f"{line}\n" for line, said in lines.items())


def _method(found: SavedConfig) -> str:
    """The configuration in methods/ of a method."""
    return found.model.net if isinstance(found.model, CnnConfig) else found.model.name


def _same_towers(found: SavedConfig) -> str:
    """The key that gives a training the towers of this model."""
    if found.model.towers is None:
        return ""
    arch = found.model.towers.arch
    return f" model.towers.arch={f'FOLDER/{arch}' if arch.endswith('.json') else arch}"


def _backbone(found: SavedConfig) -> str:
    """The architecture of the CLIP in it, if there is one."""
    return f", backbone `{found.model.towers.arch}`" if found.model.towers is not None else ""


def _source(origin: Origin) -> str:
    if origin.made_by != "export":
        return f"file `{origin.source}`, sha256 `{origin.source_sha256}`"
    if not origin.step:
        return f"run `{origin.source}`, which trained nothing"
    at = f"step {origin.step}, epoch {origin.epoch}"
    return f"checkpoint of run `{origin.source}`, {at}, sha256 `{origin.source_sha256}`"


def _score(found: SavedConfig) -> str:
    score = found.score
    if score is None:
        return "not evaluated when this folder was made"
    interval = score.interval
    said = f" (95 % {100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else " (interval not computed)"
    text = f"WAR {100 * score.war:.2f} %{said}, UAR {100 * score.uar:.2f} % on {score.clips:,} test clips"
    text += "" if found.origin.trained else f" of {_set(found.origin)}, {_fold(found.origin)}"
    return (
        f"{text}; {LEAKS_LABEL}: the model was given the true label of every test clip" if score.leaks_label else text
    )
