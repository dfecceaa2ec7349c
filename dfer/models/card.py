"""The model card of a saved model: README.md with front matter for the Hugging Face hub. Imports no torch.

The text depends on the arguments alone, so that the same model gives the same card.
"""

import yaml

from dfer.choices import SELECTION_TEXT
from dfer.models.saved import Origin, SavedConfig, Score, TrainedSet

SETS = {"dfew": "DFEW", "ferv39k": "FERV39k", "mafw": "MAFW"}
LICENCE = (
    "dfer's code is under Apache-2.0. These weights may be bound by more than that: by the licence of the weights that "
    "the training began with, of the file that was imported, and by the terms of the data set, which usually allow "
    "academic research only. Ask their owners before you publish or sell anything made with them."
)
CROPS = (
    "Frames are crops of one face, as the data set delivers them{delivered}. Scores on other crops are not comparable; "
    "find, track and crop faces as that data set did, with the same margin."
)


def card(found: SavedConfig) -> str:
    """Return the text of README.md."""
    return f"---\n{_front(found)}---\n\n{_body(found)}"


def _front(found: SavedConfig) -> str:
    """YAML for the hub. The licence is `other`: what binds the weights is said in the text."""
    front: dict[str, object] = {
        "library_name": "dfer",
        "pipeline_tag": "video-classification",
        "license": "other",
        "license_name": "see-card",
        "tags": ["facial-expression-recognition", found.model.name],
    }
    if found.score is not None:
        front["model-index"] = [{"name": found.model.name, "results": [_result(found, found.score)]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _result(found: SavedConfig, score: Score) -> dict[str, object]:
    scores = {"WAR (accuracy)": ("accuracy", score.war), "UAR (mean recall of the classes)": ("recall", score.uar)}
    return {
        "task": {"type": "video-classification", "name": "Facial expression recognition in video"},
        "dataset": {"type": found.origin.dataset, "name": _set(found.origin), "split": _fold(found.origin)},
        "metrics": [{"type": kind, "name": name, "value": round(v, 6)} for name, (kind, v) in scores.items()],
    }


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
    delivered = f" ({SETS[origin.dataset]})" if origin.dataset in SETS else ""
    rows = {
        "method": f"`{found.model.name}`{_backbone(found)}",
        "classes": ", ".join(found.classes),
        "input": f"{found.data['frames']} frames of {found.data['size']} x {found.data['size']} pixels, RGB",
        "normalisation": f"{found.normalisation}; done by the model",
        "trained on": f"{_set(origin)}, {_fold(origin)}{_further(origin)}",
        "selection": SELECTION_TEXT.get(origin.selection or "unknown", "unknown"),
        "score": _score(found.score),
        "source": f"{_source(origin)}, sha256 `{origin.source_sha256}`",
        "weights": f"`model.safetensors`, {found.bytes:,} bytes, sha256 `{found.sha256}`",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    said = "".join(
        f"- {name}: {text if isinstance(text, str) else ' / '.join(text)}\n"
        for name, text in zip(found.classes, texts or ())
    )
    return (
        f"# {found.model.name} on {_set(origin)}\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n```sh\ndfer predict FOLDER clips/00001                    # a folder of face frames\n"
        f"dfer evaluate FOLDER sets/SET run=runs/x fold=1    # your shards of the data set\n"
        f"dfer train methods/{found.model.name} sets/SET model.start=FOLDER\n```\n\n"
        f"FOLDER is the folder of this file: a path, `s3://...`, `https://...`, or what "
        f"`huggingface_hub.snapshot_download` returns. Nothing in it is run when it is read.\n\n"
        f"## Crops\n\n{CROPS.format(delivered=delivered)}\n\n"
        + (f"## Class texts\n\n{said}\n" if said else "")
        + f"## Licence\n\n{LICENCE}\n"
    )


def _backbone(found: SavedConfig) -> str:
    """The architecture of the CLIP in it, if there is one."""
    return f", backbone `{found.model.towers.arch}`" if found.model.towers is not None else ""


def _source(origin: Origin) -> str:
    if origin.made_by == "import":
        return f"file `{origin.source}`"
    return f"checkpoint of run `{origin.source}`, step {origin.step}, epoch {origin.epoch}"


def _score(score: Score | None) -> str:
    if score is None:
        return "not evaluated when this folder was made"
    interval = score.interval
    said = f" (95 % {100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else " (interval not computed)"
    return f"WAR {100 * score.war:.2f} %{said}, UAR {100 * score.uar:.2f} % on {score.clips:,} test clips"
