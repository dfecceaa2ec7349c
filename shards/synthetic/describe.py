"""Say in words what a generated face shows: its facial action units, and how the person and the scene look.

The words come from the numbers that draw the face. No class enters: faces of two classes that are drawn with equal
action units are described alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.synthetic.action_units import COLUMN, Array
from shards.synthetic.identity import HAIRS, SKINS, Colour, Identity, Scene

SEEN = 0.2
"""Least intensity at which an action unit is described."""
SLIGHT, STRONG = 0.45, 0.75
"""Intensities below which a unit is called slight, and from which it may be called strong."""

UNITS: dict[str, tuple[str, ...]] = {
    "1": ("the inner brows are raised", "the inner corners of the brows go up", "inner brow raiser"),
    "2": ("the outer brows are raised", "the outer corners of the brows go up", "outer brow raiser"),
    "4": ("the brows are lowered", "the brows are drawn together", "brow lowerer"),
    "5": ("the upper lids are raised", "the eyes are wide open", "upper lid raiser"),
    "6": ("the cheeks are raised", "the cheeks push up the lower lids", "cheek raiser"),
    "7": ("the lids are tightened", "the eyes are narrowed", "lid tightener"),
    "9": ("the nose is wrinkled", "wrinkles run along the nose", "nose wrinkler"),
    "10": ("the upper lip is raised", "the upper lip is pulled up", "upper lip raiser"),
    "12": ("the lip corners are pulled up", "the corners of the mouth go up", "lip corner puller"),
    "12 one": ("one lip corner is pulled up", "the mouth goes up on one side", "lip corner puller on one side"),
    "14": ("the lip corners are pressed into the cheeks", "dimples show beside the mouth", "dimpler"),
    "14 one": ("one lip corner is pressed into the cheek", "a dimple shows on one side", "dimpler on one side"),
    "15": ("the lip corners are pulled down", "the corners of the mouth go down", "lip corner depressor"),
    "17": ("the chin is raised", "the chin pushes the lower lip up", "chin raiser"),
    "20": ("the lips are stretched sideways", "the mouth is drawn wide", "lip stretcher"),
    "23": ("the lips are tightened", "the lips are narrow and tight", "lip tightener"),
    "24": ("the lips are pressed together", "the mouth is pressed shut", "lip pressor"),
    "25": ("the lips are parted", "the teeth can be seen", "lips part"),
    "26": ("the jaw is dropped", "the mouth hangs open", "jaw drop"),
    "43": ("the eyes are nearly closed", "the upper lids droop", "eyes closed"),
}
"""Wordings of each action unit; those with `one` are of a unit on one side of the face."""
RELAXED = ("the face is relaxed", "no muscle of the face is tense", "no action unit is active")
OPENINGS = ("a photo of a person with", "a picture of somebody with", "a face with", "someone with")


def active_units(units: Array) -> dict[str, float]:
    """Return the units (K,) that are seen, in the order of the system's numbers, with their intensities. A unit that
    exists on both sides and is seen on one alone is called `12 one`."""
    found: dict[str, float] = {}
    for name in (name for name in UNITS if not name.endswith("one")):
        sides = [float(units[COLUMN[column]]) for column in (name, f"{name}L", f"{name}R") if column in COLUMN]
        seen = [value for value in sides if value >= SEEN]
        if seen:
            found[name if len(seen) == len(sides) else f"{name} one"] = max(seen)
    return found


def description(units: Array, *, rng: np.random.Generator) -> str:
    """Describe every action unit that is seen in `units` (K,), in random order and wording."""
    seen = list(active_units(units).items())
    if not seen:
        return _sentence([_one_of(RELAXED, rng)])
    return _sentence([_unit(*seen[i], rng=rng) for i in rng.permutation(len(seen))])


def caption(units: Array, *, who: Identity, scene: Scene, rng: np.random.Generator) -> str:
    """Describe a face as people do, incompletely: two or three facts of its looks, and one or two of its action units,
    or that it is relaxed."""
    looks = appearance(who, scene)
    chosen = [looks[i] for i in rng.permutation(len(looks))[: int(rng.integers(2, 4))]]
    seen = list(active_units(units).items())
    said = [_unit(*seen[i], rng=rng) for i in rng.permutation(len(seen))[: int(rng.integers(1, 3))]]
    return f"{_one_of(OPENINGS, rng)} {_joined(chosen)}. {_sentence(said or [_one_of(RELAXED, rng)])}"


def appearance(who: Identity, scene: Scene) -> list[str]:
    """List what is to be said of the looks of a person in a scene."""
    hair = ("black", "dark brown", "brown", "light brown", "blond", "red", "grey")[_nearest(who.hair, HAIRS)]
    skin = ("very light", "light", "light brown", "tan", "brown", "dark brown", "very dark")[_nearest(who.skin, SKINS)]
    style = "a bald head" if who.style == "bald" else f"{who.style} {hair} hair"
    words = [style, f"{skin} skin", f"{_tone(scene.cloth)} clothes"]
    bright = float(scene.background.mean())
    words.append("a bright background" if bright > 140 else "a dark background" if bright < 90 else "a grey background")
    words.append("glasses" if who.glasses else "no glasses")
    return [*words, "stubble"] if who.stubble > 0.02 else words


def _nearest(colour: Colour, palette: Sequence[Colour]) -> int:
    return int(np.abs(np.array(palette) - np.array(colour)).sum(1).argmin())


def _tone(colour: Colour) -> str:
    """Name a colour by its strongest channel, or by its brightness if it is nearly grey."""
    values = np.array(colour)
    if values.max() - values.min() < 40:
        return "white" if values.mean() > 170 else "black" if values.mean() < 70 else "grey"
    return ("red", "green", "blue")[int(values.argmax())]


def _unit(name: str, intensity: float, *, rng: np.random.Generator) -> str:
    word = "slightly" if intensity < SLIGHT else "strongly" if intensity >= STRONG and rng.random() < 0.5 else ""
    return f"{_one_of(UNITS[name], rng)} {word}".strip()


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _sentence(parts: Sequence[str]) -> str:
    text = _joined(parts)
    return f"{text[0].upper()}{text[1:]}."
