"""What is said of each class: the part of a prompt that is not learned (DFER-CLIP, section 3.2 and table 5)."""

from importlib import resources
from pathlib import Path

from dfer.config import ConfigProblem
from dfer.emotions import Emotions, canonical_name
from dfer.errors import did_you_mean, message
from dfer.yaml_text import MAX_BYTES, YamlProblem, parse

TEMPLATES = {
    "class_names": "{}.",
    "class_names_with_context": "an expression of {}.",
    "photo": "a photo of {}.",
}
KINDS = (*TEMPLATES, "class_descriptor", "clivp_fer")
"""Texts that come with the package; any other name is a YAML file of the user's, `class: text`. `clivp_fer` has texts
of seven classes, the others of every known class."""


def is_file(kind: str) -> bool:
    """Whether this names a file of texts."""
    return kind.endswith((".yaml", ".yml"))


def check_kind(kind: str) -> None:
    """Raise ConfigProblem for texts that are neither a known kind nor a YAML file."""
    if kind not in KINDS and not is_file(kind):
        expected = f"one of {', '.join(KINDS)}, or the path of a .yaml file"
        raise ConfigProblem(message("text", expected=expected, got=repr(kind), do=did_you_mean(kind, KINDS)))


def class_texts(emotions: Emotions, kind: str) -> list[str]:
    """One text a class, in class order.

    Raises:
        ConfigProblem: an unknown kind, a file that cannot be read, or a class without a text.
    """
    check_kind(kind)
    if kind in TEMPLATES:
        return [TEMPLATES[kind].format(name) for name in emotions.names]
    if is_file(kind):
        found, where = _own(Path(kind)), kind
    else:
        found, where = _packaged(kind), f"text={kind}"
    missing = [name for name in emotions.names if name not in found]
    if missing:
        do = "Give `text` the path of a YAML file with a line `class: text` for every class."
        if is_file(kind):
            do = "Add a line `class: text` for each of them."
        got = f"none for {', '.join(missing)}"
        raise ConfigProblem(message(where, expected="a text for every class", got=got, do=do))
    return [found[name] for name in emotions.names]


def _packaged(kind: str) -> dict[str, str]:
    return _texts(resources.files("dfer.models").joinpath("texts", f"{kind}.yaml").read_bytes(), kind)


def _own(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        got, do = error.strerror or type(error).__name__, "Correct the path of `text`."
        raise ConfigProblem(message(path, expected="a YAML file of texts", got=got, do=do)) from error
    return _texts(data, path)


def _texts(data: bytes, where: object) -> dict[str, str]:
    try:
        plain = parse(data)
    except YamlProblem as problem:
        got = f"not valid YAML ({problem})"
        raise ConfigProblem(
            message(where, expected="lines `class: text`", got=got, do="Correct the file.")
        ) from problem
    if not isinstance(plain, dict) or not all(isinstance(text, str) and text.strip() for text in plain.values()):
        got = type(plain).__name__ if not isinstance(plain, dict) else "a value that is no text"
        raise ConfigProblem(message(where, expected="lines `class: text`", got=got, do="Correct the file."))
    names = [canonical_name(str(name)) for name in plain]
    if twice := next((name for name in names if names.count(name) > 1), None):
        got, do = f"{twice} twice, as itself or a synonym", "Keep one of them."
        raise ConfigProblem(message(where, expected="one text a class", got=got, do=do))
    return dict(zip(names, plain.values(), strict=True))
