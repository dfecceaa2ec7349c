"""The calculation behind docs/scale.md: its counts are the models', its limits behave, the page shows its tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from dfer.bench.scale import BACKBONES, Cluster, estimate, markdown
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import DferClipConfig
from dfer.models.config_towers import TowersConfig

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


def test_parameters_are_those_of_the_model() -> None:
    config = DferClipConfig(towers=TowersConfig(arch="ViT-B-32-quickgelu"))
    model = build(config, label_set("basic7"), num_frames=16, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (BACKBONES[0].trained, BACKBONES[0].saved) == (trained, sum(p.numel() for p in model.parameters()))


def test_flops_are_the_papers() -> None:
    """Dosovitskiy et al., ICLR 2021: ViT-B/32 4.4, B/16 17.6 (x 10^9 multiplications); L/14 of CLIP about 81."""
    assert [backbone.flops / 2e9 for backbone in BACKBONES] == pytest.approx([4.3, 17.5, 80], rel=0.05)


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
def test_more_gpus_never_get_slower_data_or_cheaper_sums(backbone) -> None:  # type: ignore[no-untyped-def]
    found = [estimate(backbone, gpus, clips_a_gpu=12) for gpus in (1, 8, 64, 512)]
    assert found[0].exposed == 0 and found[0].efficiency == 1
    assert [e.exposed for e in found] == sorted(e.exposed for e in found)
    assert [e.clips_a_second for e in found] == sorted(e.clips_a_second for e in found)
    assert all(0 < e.cold_limit <= 1 for e in found)
    slow = estimate(backbone, 64, clips_a_gpu=12, cluster=replace(Cluster(), wire=1e9))
    assert slow.step > found[2].step


def test_the_page_shows_the_tables_as_they_are_calculated() -> None:
    text = PAGE.read_text()
    for table in (markdown(), markdown((1, 8, 16, 64), batch=48)):
        assert table in text, "run `dfer bench scale` and put its tables into docs/scale.md"
