"""Facial action units of the generated faces, and the units that each expression contracts.

Numbers follow the Facial Action Coding System (Ekman and Friesen 1978); the sets per expression follow EMFACS
(happiness 6+12, sadness 1+4+15, surprise 1+2+5+26, fear 1+2+4+5+20+26, anger 4+5+7+23, disgust 9+15+17 or 9+10,
contempt unilateral 12+14). Anxiety, helplessness and disappointment of MAFW have no EMFACS entry; the sets here are
chosen so that a person can distinguish them.

An intensity of 0 is a relaxed muscle, 1 the strongest contraction drawn. AU12 and AU14 exist once per side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

ACTION_UNITS: tuple[str, ...] = (
    "1",  # inner brow raiser
    "2",  # outer brow raiser
    "4",  # brow lowerer
    "5",  # upper lid raiser
    "6",  # cheek raiser
    "7",  # lid tightener
    "9",  # nose wrinkler
    "10",  # upper lip raiser
    "12L",  # lip corner puller, image left
    "12R",  # lip corner puller, image right
    "14L",  # dimpler, image left
    "14R",  # dimpler, image right
    "15",  # lip corner depressor
    "17",  # chin raiser
    "20",  # lip stretcher
    "23",  # lip tightener
    "24",  # lip pressor
    "25",  # lips part
    "26",  # jaw drop
    "43",  # eyes closed
)
COLUMN: dict[str, int] = {name: column for column, name in enumerate(ACTION_UNITS)}

SURPRISE = {"1": 1.0, "2": 1.0, "5": 0.9, "25": 0.8, "26": 1.0}
FEAR = {"1": 1.0, "2": 0.6, "4": 0.6, "5": 1.0, "20": 1.0, "25": 1.0, "26": 0.35}
ANGER = {"4": 1.0, "5": 0.35, "7": 0.9, "17": 0.4, "23": 0.9, "24": 0.8}
DISGUST = {"4": 0.6, "6": 0.3, "7": 0.5, "9": 1.0, "10": 1.0, "17": 0.4, "25": 0.4}

CANONICAL: dict[str, dict[str, float]] = {
    "happiness": {"6": 0.9, "12L": 1.0, "12R": 1.0, "25": 0.8},
    "sadness": {"1": 1.0, "4": 0.7, "15": 1.0, "17": 0.6, "43": 0.25},
    "neutral": {},
    "anger": ANGER,
    "surprise": SURPRISE,
    "disgust": DISGUST,
    "fear": FEAR,
    "contempt": {"12R": 0.9, "14R": 1.0, "7": 0.3, "24": 0.2},
    "anxiety": {"1": 0.8, "4": 0.6, "5": 0.3, "14L": 0.5, "14R": 0.5, "20": 0.7, "24": 0.9},
    "helplessness": {"1": 0.9, "2": 0.8, "15": 0.8, "17": 1.0, "43": 0.15},
    "disappointment": {"4": 0.35, "14L": 0.7, "14R": 0.7, "15": 0.6, "24": 0.7, "43": 0.5},
}

# The two classes of a pair share one distribution of patterns (a random blend of the two canonical ones), so no set of
# frames distinguishes them; only the direction of time differs. The first of a pair starts abruptly and fades, the
# second builds up and stops abruptly.
TEMPORAL_PAIRS: tuple[tuple[str, str], ...] = (("surprise", "fear"), ("anger", "disgust"))


def partner(emotion: str) -> str | None:
    """Return the class that shares its frames with `emotion`, or None for a class that one apex frame identifies."""
    return next((b if emotion == a else a for a, b in TEMPORAL_PAIRS if emotion in (a, b)), None)


def vector(pattern: dict[str, float]) -> Array:
    """Return the intensities in the order of `ACTION_UNITS`, shape (K,)."""
    out = np.zeros(len(ACTION_UNITS), np.float32)
    for name, value in pattern.items():
        out[COLUMN[name]] = value
    return out


def apex(emotion: str, *, rng: np.random.Generator) -> Array:
    """Draw a random apex of `emotion`, shape (K,), values in [0, 1].

    One overall intensity in [0.6, 1] times a jitter for each unit. Both classes of a temporal pair draw the same
    numbers in the same order, so equal generators give equal apexes.
    """
    other = partner(emotion)
    blend, intensity = rng.uniform(0.35, 0.65), rng.uniform(0.6, 1.0)
    mirrored = rng.random() < 0.5
    jitter = rng.uniform(0.8, 1.1, len(ACTION_UNITS))
    if other is None:
        base = vector(CANONICAL[emotion])
    else:
        first, second = next(pair for pair in TEMPORAL_PAIRS if emotion in pair)
        base = blend * vector(CANONICAL[first]) + (1 - blend) * vector(CANONICAL[second])
    if mirrored:
        base = mirror(base)
    return np.clip(base * intensity * jitter, 0.0, 1.0).astype(np.float32)


def mirror(units: Array) -> Array:
    """Swap the two sides of AU12 and AU14; shape (K,) in and out."""
    out = units.copy()
    for name in ("12", "14"):
        out[COLUMN[name + "L"]], out[COLUMN[name + "R"]] = units[COLUMN[name + "R"]], units[COLUMN[name + "L"]]
    return out
