"""With the same weights the model answers as the released DFER-CLIP code did; see tests/reference/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dfer.emotions import Emotions, label_set
from dfer.models.build import build
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.dfer_clip import DferClip
from dfer.models.foreign.fill import fill_foreign
from dfer.models.foreign.weights import read_weights
from dfer.models.texts import class_texts
from dfer.recognition import ClipBatch
from tests.reference.recipe import CASES, Case, clips
from tests.unit.models.conftest import Released

TOLERANCE = 1e-4


def emotions(case: Case) -> Emotions:
    return label_set("basic7" if case.classes == 7 else "mafw11")


def config(case: Case, *, arch: str) -> DferClipConfig:
    return DferClipConfig(
        towers=TowersConfig(arch=arch),
        text=case.text,
        num_contexts=case.contexts,
        context_position=case.position,  # type: ignore[arg-type]
        shared_contexts=case.shared,
        temporal=TemporalConfig(depth=case.depth),
    )


def reference_batch() -> ClipBatch:
    frames = torch.from_numpy(clips())
    return ClipBatch(frames=frames, labels=torch.arange(len(frames)), index=torch.arange(len(frames)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_equal_the_released_code(case: Case, arch: str, released: Released, recorded: dict[str, Any]) -> None:
    path = released(case)
    model = build(config(case, arch=arch), emotions(case), num_frames=16, seed=3)
    fill_foreign(model, read_weights(path), path, emotions(case))
    assert isinstance(model, DferClip)
    batch = reference_batch()
    out = model(batch)
    found = {"logits": out.logits, "video": model.encode_video(batch.frames), "text": model.encode_text()}
    F.cross_entropy(out.logits, batch.labels).backward()
    found["cls_grad"] = model.temporal.token.grad[None]
    if case.contexts:
        found["context_grad"] = model.prompts.contexts.grad
    assert class_texts(emotions(case), case.text) == recorded["about"]["cases"][case.name]["texts"]
    for name, value in found.items():
        expected = recorded[f"{case.name}/{name}"]
        assert value.shape == expected.shape
        np.testing.assert_allclose(value.detach().numpy(), expected, atol=TOLERANCE, rtol=0, err_msg=name)
    theirs = torch.from_numpy(recorded[f"{case.name}/logits"]).double().softmax(-1)
    # Three temporal layers round more; how fp32 rounds depends on processor and threads (1.2e-6 seen with one thread).
    most = 2e-6 if case.name.startswith("published") else 5e-6
    assert (out.logits.double().softmax(-1) - theirs).abs().max() < most


def test_the_recording_tells_cases_and_clips_apart(recorded: dict[str, Any]) -> None:
    """Else agreement within the tolerance would mean nothing."""
    for case in CASES:
        logits = recorded[f"{case.name}/logits"]
        assert np.ptp(logits, axis=0).min() > 10 * TOLERANCE
        assert np.ptp(logits, axis=1).min() > 100 * TOLERANCE
