"""The small convolutional tower, the start of the temporal tokens, and pretrained tags."""

import open_clip
import pytest
import torch

from dfer.config import ConfigProblem
from dfer.errors import CheckpointError
from dfer.models.config_towers import TemporalConfig, TowersConfig
from dfer.models.temporal import temporal_model
from dfer.models.towers import Towers


def test_a_picture_is_seen_alike_in_any_batch_and_mode() -> None:
    towers = Towers(TowersConfig(arch="tiny-conv-64"))
    pictures = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = towers.train().encode_frames(pictures)
    alone = torch.cat([towers.eval().encode_frames(picture[None]) for picture in pictures])
    assert together.shape == (5, towers.embed_dim)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_places_count() -> None:
    """The same mark in another place is another feature; a tower that averages places could not tell at a distance."""
    towers = Towers(TowersConfig(arch="tiny-conv-64")).eval()
    here, there = torch.zeros(2, 1, 3, 64, 64)
    here[..., 8:16, 8:16] = 1
    there[..., 40:48, 40:48] = 1
    a, b = towers.encode_frames(here), towers.encode_frames(there)
    assert (a - b).norm() > 0.1 * a.norm()


def test_another_size_is_refused() -> None:
    with pytest.raises(ConfigProblem, match=r"towers\.image_size: expected 64 for tiny-conv-64, got 96"):
        Towers(TowersConfig(arch="tiny-conv-64", image_size=96))


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_temporal_tokens_start_as_wide_as_configured(std: float) -> None:
    torch.manual_seed(0)
    model = temporal_model(256, num_frames=16, config=TemporalConfig(init_std=std))
    spread = torch.cat([model.token, model.positions]).std().item()  # type: ignore[list-item]
    assert spread == pytest.approx(std, rel=0.05)
    with pytest.raises(ConfigProblem, match=r"temporal\.init_std: expected more than 0, got 0"):
        TemporalConfig(init_std=0)


def test_a_tag_that_cannot_be_downloaded_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"pretrained=openai: expected to download .* ConnectionError \(no route"):
        Towers(TowersConfig(arch="ViT-B-32-quickgelu", pretrained="openai"))
