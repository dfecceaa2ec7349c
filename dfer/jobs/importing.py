"""Import a file of weights that others published: as a saved model, or as a file that a key of `model` takes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, emotions_of, label_set
from dfer.errors import CheckpointError, message
from dfer.jobs.config import RunConfig, load_run
from dfer.jobs.export import saved_config
from dfer.models.build import build
from dfer.models.card import LICENCE, card, fold_words
from dfer.models.foreign.fill import check_fold, check_method, fill_foreign, start_of
from dfer.models.foreign.towers import as_open_clip, open_clip_config
from dfer.models.foreign.weights import Weights, check_file, read_weights, refuse_not_finite
from dfer.models.head_file import ARCHS, CLIP, MadeFor, released_head
from dfer.models.saved import CARD, Origin
from dfer.models.saving import move_into_place, prepared, save, staging, write_tensors
from dfer.storage import Folder

TOWERS, HEAD = "towers", "exp_clip"
"""Values of --method for parts of a model: a CLIP, and the linear map of Exp-CLIP."""
TOWERS_FILE, TOWERS_CONFIG, HEAD_FILE = "open_clip_model.safetensors", "open_clip_config.json", "head.safetensors"
HEAD_WEIGHT = "mlp.weight"
"""The only name in a released Exp-CLIP file: the map [4096 D], without bias."""
LONG_BYTES = 64 * 2**20
"""From this size on the progress of reading is told."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What an import took. weights: by the name they have afterwards. left_out: names in the file, with the reason.
    notes: further lines. use: how to use OUT. new: False if OUT held it already, None if nothing was to be written."""

    weights: Mapping[str, Tensor]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    use: str
    new: bool | None

    def lines(self) -> Iterator[str]:
        """Describe it, a line a tensor."""
        count = sum(value.numel() for value in self.weights.values())
        yield f"takes {len(self.weights)} tensors of {count:,} numbers"
        yield from (f"  {name} {list(value.shape)}" for name, value in self.weights.items())
        yield from (f"leaves out {name}: {why}" for name, why in self.left_out.items())
        yield from self.notes


def import_model(
    file: Path,
    out: Folder | None,
    *,
    method: str,
    dataset: str,
    fold: int | None = None,
    overrides: Sequence[str] = (),
    tell: Tell = lambda _: None,
) -> Taken:
    """Make a saved model of a file that a method's authors published. Nothing in the file is executed.

    out: None writes nothing. dataset: the configuration `sets/DATASET` gives the classes. fold: of `data.protocol`,
    that the file was trained on, if known. overrides: `a.b=c` where the file differs from `methods/METHOD`.

    Raises:
        CheckpointError: the file is no whole file of weights, or of another method, backbone, number of classes or
            frames, or other texts. ConfigProblem: the method or the set is unknown. UsageError: OUT holds something
            else. StorageError.
    """
    config = load_run([f"methods/{method}", f"sets/{dataset.lower()}"], overrides)
    check_method(config.model.name)
    check_fold(config.model.name, dataset.lower(), config.data.protocol if fold is not None else None)
    emotions = _emotions(config)
    weights, sha256 = _read(file, tell)
    model = build(config.model, emotions, num_frames=config.data.frames, seed=config.seed, weights=False)
    left_out = fill_foreign(model, weights, file, emotions, dataset=dataset.lower())
    start = start_of(config.model.name, weights)
    origin = _origin(config, file, sha256, dataset.lower(), fold, start)
    new = None
    if out is not None:
        tell(f"writing {out}")
        found = saved_config(config, emotions, model, origin)
        found = replace(found, words={**found.words, "start": start}) if start else found
        new = save(out, found, model.state_dict(), card=card, own=prepared(config.model)[1])[1]
    use = f"model.start={out or 'OUT'}"
    if not start:
        use = f"dfer evaluate {out or 'OUT'} sets/{dataset.lower()}{fold_words(origin)}, dfer predict, or {use}"
        if fold is None:
            use += ". Give --fold if you know it: without it nothing tells whether test clips were trained on"
    notes = (f"to begin a training with: {start}",) if start else ()
    return Taken(weights=model.state_dict(), left_out=left_out, notes=notes, use=use, new=new)


def _origin(config: RunConfig, file: Path, sha256: str, dataset: str, fold: int | None, start: str) -> Origin:
    """Describe where an imported model comes from. start: what the file is, if it is of another method: what that was
    trained on is not in it. Raises ConfigProblem for a fold then."""
    if start and fold is not None:
        expected = f"none for {start.partition(',')[0]}"
        raise ConfigProblem(message("--fold", expected=expected, got=str(fold), do="Leave it out."))
    if start:
        return Origin(made_by="start", source=file.name, source_sha256=sha256)
    return Origin(
        made_by="import",
        source=file.name,
        source_sha256=sha256,
        dataset=dataset,
        protocol=config.data.protocol if fold is not None else "",
        fold=fold,
        selection="best_on_test",  # what the authors of all these files did
    )


def _emotions(config: RunConfig) -> Emotions:
    classes = config.data.classes
    if classes is None:
        raise ConfigProblem(
            message("data.classes", expected="the classes", got="none", do="Give them as data.classes=[a,b,...].")
        )
    return label_set(classes) if isinstance(classes, str) else emotions_of(classes)


def import_towers(file: Path, out: Folder | None, *, arch: str, tell: Tell = lambda _: None) -> Taken:
    """Make a file in open_clip's layout of a CLIP in the layout of OpenAI, open_clip or transformers.

    OUT is a folder as open_clip writes it for a hub. Raises as `import_model`.
    """
    weights, sha256 = _read(file, tell)
    own, settings, said = as_open_clip(weights, file, arch=arch)
    left_out = {
        name: "describes the file" for name in weights if name in ("input_resolution", "context_length", "vocab_size")
    }
    at = f"{out or 'OUT'}/{TOWERS_FILE}"
    text = json.dumps(open_clip_config(settings), indent=1) + "\n"
    new = _write_part(out, TOWERS_FILE, own, f"CLIP {arch}", file, sha256, tell, {TOWERS_CONFIG: text})
    use = f"model.towers.arch={arch} model.towers.pretrained={at}"
    return Taken(weights=own, left_out=left_out, notes=(f"activation: {said}",), use=use, new=new)


def import_head(file: Path, out: Folder | None, *, tell: Tell = lambda _: None) -> Taken:
    """Make a file of Exp-CLIP's linear map, which the method `zero_shot` takes as `head`. Raises as `import_model`."""
    weights, sha256 = _read(file, tell)
    shape = tuple(weights[HEAD_WEIGHT].shape) if HEAD_WEIGHT in weights else ()
    if set(weights) != {HEAD_WEIGHT} or len(shape) != 2 or not all(shape):
        got = f"{', '.join(list(weights)[:4])}" + (f" of {shape}" if shape else "")
        expected, do = f"{HEAD_WEIGHT} of two dimensions alone", "Give a head as Exp-CLIP's authors publish it."
        raise CheckpointError(message(file, expected=expected, got=got, do=do))
    own = {HEAD_WEIGHT: weights[HEAD_WEIGHT].float()}
    size = released_head(file)
    made = {CLIP: MadeFor.of_release(size, own[HEAD_WEIGHT]).to_json()} if size else None
    new = _write_part(out, HEAD_FILE, own, "Exp-CLIP head", file, sha256, tell, {}, metadata=made)
    notes = (f"the released head {size}, of OpenAI's {ARCHS[size]}",) if size else ()
    use = f"methods/zero_shot with model.head={out or 'OUT'}/{HEAD_FILE}"
    return Taken(weights=own, left_out={}, notes=notes, use=use, new=new)


def _write_part(
    out: Folder | None,
    name: str,
    weights: Mapping[str, Tensor],
    title: str,
    file: Path,
    sha256: str,
    tell: Tell,
    beside: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
) -> bool | None:
    """Write a part of a model with a card, whole or not at all. None if there is no OUT."""
    if out is None:
        return None
    tell(f"writing {out}")
    front = "---\nlicense: other\nlicense_name: see-card\ntags: [clip]\n---\n\n"
    said = f"`{name}` was made of the file `{file.name}`, sha256 `{sha256}`."
    with staging(out) as staged:
        write_tensors(weights, staged / name, metadata)
        for other, text in {CARD: f"{front}# {title}\n\n{said}\n\n{LICENCE}\n", **beside}.items():
            (staged / other).write_text(text, encoding="utf-8")
        return move_into_place(staged, out, last=CARD)


def _read(file: Path, tell: Tell) -> tuple[Weights, str]:
    """Read a file of weights, and compute its sha256. Raises CheckpointError."""
    check_file(file, file)
    size = file.stat().st_size
    if size >= LONG_BYTES:
        tell(f"reading {file}, {size >> 20} MiB")
    sha256 = _sha256_of(file, size, tell)
    weights = read_weights(file)
    refuse_not_finite(weights, file)
    return weights, sha256


def _sha256_of(file: Path, size: int, tell: Tell) -> str:
    found, done, told = hashlib.sha256(), 0, 0
    with file.open("rb") as opened:
        while data := opened.read(2**22):
            found.update(data)
            done += len(data)
            tenth = 10 * done // max(size, 1)
            if size >= LONG_BYTES and tenth > told:
                tell(f"read {10 * tenth} %")
                told = tenth
    return found.hexdigest()
