"""What is said of each class: the part of a prompt that is not learned.

Sources: DFER-CLIP (Zhao & Patras, BMVC 2023), section 3.2 and table 5; the five prompt kinds of Exp-CLIP (Zhao et al.,
WACV 2025) are `class_names`, `class_names_with_context`, `face_with_expression`, `ensemble_5` and `ensemble_10`.
"""

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
    "face_with_expression": "a photo of a face with an expression of {}.",
}
SINGLE = (*TEMPLATES, "class_descriptor", "action_units")
"""Kinds with one text a class."""
KINDS = (*SINGLE, "clivp_fer", "ensemble_5", "ensemble_10")
"""Texts that come with the package; any other name is a YAML file of the user's, with lines `class: text`, or
`class: [text, ...]` for several texts. `clivp_fer` has texts of seven classes, the others of every known class."""


def is_file(kind: str) -> bool:
    """Whether this names a file of texts."""
    return kind.endswith((".yaml", ".yml"))


def check_kind(kind: str) -> None:
    """Raise ConfigProblem for texts that are neither a known kind nor a YAML file."""
    if kind not in KINDS and not is_file(kind):
        expected = f"one of {', '.join(KINDS)}, or the path of a .yaml file"
        raise ConfigProblem(message("text", expected=expected, got=repr(kind), do=did_you_mean(kind, KINDS)))


def class_texts(emotions: Emotions, kind: str) -> list[str]:
    """Return one text a class, in class order, for methods that take no more.

    Raises:
        ConfigProblem: as `class_prompts`, or a class has several texts.
    """
    prompts = class_prompts(emotions, kind)
    several = [f"{len(found)} of {name}" for name, found in zip(emotions.names, prompts) if len(found) > 1]
    if several:
        do = "Set `text` to a kind with one text a class."
        raise ConfigProblem(message(f"text={kind}", expected="one text a class", got=several[0], do=do))
    return [found[0] for found in prompts]


def class_prompts(emotions: Emotions, kind: str) -> list[list[str]]:
    """Return the texts of every class, in class order; one or more a class.

    Raises:
        ConfigProblem: an unknown kind, a file that cannot be read, or a class without a text.
    """
    check_kind(kind)
    if kind in TEMPLATES:
        return [[TEMPLATES[kind].format(name)] for name in emotions.names]
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


def given_classes(path: str) -> list[str]:
    """Return the classes of which a file has texts. Raises ConfigProblem if it cannot be read."""
    return list(_own(Path(path)))


def _packaged(kind: str) -> dict[str, list[str]]:
    return _texts(resources.files("dfer.models").joinpath("texts", f"{kind}.yaml").read_bytes(), kind)


def _own(path: Path) -> dict[str, list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        got, do = error.strerror or type(error).__name__, "Correct the path of `text`."
        raise ConfigProblem(message(path, expected="a YAML file of texts", got=got, do=do)) from error
    return _texts(data, path)


def _texts(data: bytes, where: object) -> dict[str, list[str]]:
    try:
        plain = parse(data)
    except YamlProblem as problem:
        got = f"not valid YAML ({problem})"
        raise ConfigProblem(
            message(where, expected="lines `class: text`", got=got, do="Correct the file.")
        ) from problem
    texts = [_listed(value) for value in plain.values()] if isinstance(plain, dict) else []
    if not isinstance(plain, dict) or not all(texts):
        got = type(plain).__name__ if not isinstance(plain, dict) else "a value that is no text"
        raise ConfigProblem(message(where, expected="lines `class: text`", got=got, do="Correct the file."))
    names = [canonical_name(str(name)) for name in plain]
    if twice := next((name for name in names if names.count(name) > 1), None):
        got, do = f"{twice} twice, as itself or a synonym", "Keep one of them."
        raise ConfigProblem(message(where, expected="one text a class", got=got, do=do))
    return dict(zip(names, texts, strict=True))


def _listed(value: object) -> list[str]:
    """Return the texts of a class, given as one text or a list of them; none if anything else is among them."""
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    return texts if len(texts) == len(given) else []
