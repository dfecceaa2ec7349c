"""Every trainable method at full size: one step of its shipped recipe through the engine, weights drawn, on the CPU."""

import math
from collections.abc import Iterator

import pytest
import torch

from dfer.bench.step import clips_of_noise
from dfer.distributed import World, process_group
from dfer.emotions import label_set
from dfer.jobs.config import load_run
from dfer.models.build import build
from dfer.recognition import Progress
from dfer.training.build import build_engine

pytestmark = [pytest.mark.integration, pytest.mark.long]

CLIPS = 2
# Set and millions of parameters, trained or not: CLIP ViT-B/32 has 151.3 and ViT-B/16 149.6 (Radford et al., 2021); the
# CNNs 20.0 and 11.2 (their release).
METHODS = {
    "dfer_clip": ("mafw", 150),
    "linear_probe": ("mafw", 87),
    "fine_tune_temporal": ("mafw", 87),
    "coop": ("mafw", 150),
    "cocoop": ("mafw", 150),
    "contrastive": ("mafw", 150),
    "dk_clip": ("mafw", 220),
    "dk_clip_released": ("mafw", 220),
    "clivp_fer": ("kmu_fed", 150),
    "vgg19": ("fer2013", 20),
    "resnet18": ("fer2013", 11),
}


@pytest.fixture
def alone() -> Iterator[World]:
    with process_group(World()):
        yield World()


@pytest.mark.slow("DK-CLIP's two encoders take 3 minutes on two busy cores, and 8 GB")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_at_full_size_moves_every_group(method: str, alone: World) -> None:
    data, millions = METHODS[method]
    words = ["engine={name: ddp, zero: 0, precision: fp32}"]
    words += [] if method in ("vgg19", "resnet18") else ["model.towers.pretrained=null"]
    run = load_run([f"methods/{method}", f"sets/{data}"], words)
    assert isinstance(run.data.classes, str)
    emotions = label_set(run.data.classes)
    model = build(run.model, emotions, num_frames=run.data.frames, seed=1)
    assert sum(p.numel() for p in model.parameters()) > millions * 1e6
    groups = {name: [*group.params] for name, group in model.param_groups().items()}
    assert {*groups} == {*run.optim.groups}
    before = {name: [p.detach().clone() for p in params] for name, params in groups.items()}
    engine = build_engine(
        run.engine, model, optim=run.optim, world=alone, global_batch=CLIPS, micro_batch=CLIPS, seed=1
    )
    batch = clips_of_noise(CLIPS, run.data.frames, run.data.size, torch.device("cpu"), classes=len(emotions))
    report = engine.step([batch], progress=Progress(epoch=0, step=0, fraction=0.0))
    assert math.isfinite(report.loss) and report.loss > 0
    still = [
        n for n, params in groups.items() if all(torch.equal(a, b) for a, b in zip(before[n], params, strict=True))
    ]
    assert not still
