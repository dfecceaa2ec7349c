"""Models and tokenizers of transformers, loaded from a folder or by a name on a hub; no code of a model's is run.

Letters: L tokens of a text.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfer.errors import CheckpointError, message
from dfer.teacher.files import folder_of, is_offline, snapshot_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZE = "Copy or download the tokenizer's files again, those of this model."


def place_of(model: str) -> str:
    """Return what transformers takes for `teacher.model`: a folder, or a name on a hub."""
    return str(folder_of(model) or model)


def loading(model: str, revision: str | None) -> dict[str, Any]:
    """Options of transformers' loading: no code of the model's, no download where that is off."""
    local = folder_of(model) is not None or is_offline()
    return {"local_files_only": local, "revision": revision or "main", "trust_remote_code": False}


def config_of(model: str, revision: str | None) -> Any:
    """Load a model's configuration. Raises CheckpointError."""
    from transformers import AutoConfig

    place = place_of(model)
    try:
        return AutoConfig.from_pretrained(place, **loading(model, revision))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _no_model(place, error) from error


def commit_of(model: str, revision: str | None) -> str | None:
    """Return the commit on the hub that a revision is, after its configuration was loaded; None for a folder. Loading
    the rest by it keeps weights and tokenizer together while a branch moves."""
    snapshot = snapshot_of(model, revision) if folder_of(model) is None else None
    return snapshot.name if snapshot is not None else None


def from_pretrained(
    kind: Any, model: str, revision: str | None, *, exact: Sequence[str] = (), unused: str | None = None, **more: Any
) -> Any:
    """Load a model of transformers from safetensors, in evaluation mode, and refuse one that lacks weights.

    exact: names of modules and parameters that stay in fp32 whatever the number format of the others. unused: prefix of
    weights that nothing reads, which may be missing. more: options, such as `dtype`.

    Raises:
        CheckpointError: it cannot be loaded, or weights are missing.
    """
    place, options = place_of(model), loading(model, revision) | {"use_safetensors": True} | more
    try:
        found, told = _keeping(kind, exact).from_pretrained(place, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _no_model(place, error) from error
    missing = sorted(name for name in told.get("missing_keys") or () if not (unused and name.startswith(unused)))
    if missing:
        got, do = f"none for {len(missing)} ({', '.join(missing[:3])})", "Copy or download the model again."
        raise CheckpointError(message(place, expected="weights of the whole model", got=got, do=do))
    return found.eval()


def _keeping(kind: Any, exact: Sequence[str]) -> Any:
    """Derive a class of models that reads some modules in fp32.

    transformers does so for a model's own list, but in fp16 alone; for bf16 there is only this private list. Rounding
    the weights and converting them back later would lose their last 16 bits.
    """
    if not exact:
        return kind
    kept = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    kept._keep_in_fp32_modules_strict = [*exact]  # type: ignore[attr-defined]
    return kept


def tokenizer_of(model: str, revision: str | None, *, subfolder: str = "") -> Any:
    """Load a tokenizer of transformers. Raises CheckpointError."""
    from transformers import AutoTokenizer

    place = place_of(model)
    try:
        return AutoTokenizer.from_pretrained(place, subfolder=subfolder, **loading(model, revision))
    except Exception as error:  # of tokenizers' Rust, plain exceptions; of a missing package, ImportError
        where = f"{place}/{subfolder}" if subfolder else place
        expected, got = "a tokenizer of transformers", _first_line(error)
        raise CheckpointError(message(where, expected=expected, got=got, do=TOKENIZE)) from error


def encoded(tokenizer: Any, text: str, *, size: int, where: str, end: int | None = None) -> Tensor:
    """Encode a text, int64 [1 L].

    size: number of tokens that the model knows. where: for messages. end: the closing token, if it must be there.

    Raises:
        CheckpointError: the tokenizer knows none of the words, does not close the text, or is of another model.
    """
    ids = [int(number) for number in tokenizer(text)["input_ids"]]
    got = None
    if not {*ids} - {*tokenizer.all_special_ids}:
        got = f"{len(ids)} tokens, none of them of a word"
    elif end is not None and ids[-1] != end:
        got = f"token {ids[-1]} at the end, where {end} closes a text"
    elif max(ids) >= size:
        got = f"token {max(ids)}, but the model has {size}"
    if got is not None:
        expected = f"a tokenizer of this model that encodes {text[:40]!r}"
        raise CheckpointError(message(where, expected=expected, got=got, do=TOKENIZE))
    return torch.tensor([ids], dtype=torch.int64)


def _no_model(place: str, error: Exception) -> CheckpointError:
    do = "Correct teacher.model; for a name on a hub, download it first or go online."
    return CheckpointError(message(place, expected="a model of transformers", got=_first_line(error), do=do))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200] or type(error).__name__
