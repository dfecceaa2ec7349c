"""Files of the released CNNs: both layouts and their wrappers are read as data; others are refused."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfer.emotions import label_set
from dfer.errors import CheckpointError
from dfer.models.build import build
from dfer.models.cnn import Block, resnet18, vgg19
from dfer.models.config_clivp_fer import CnnConfig
from dfer.models.foreign import cnn as foreign
from dfer.models.foreign.weights import read_weights
from tests.reference import recipe_cnn as recipe
from tests.unit.models.released_cnn import released_weights

nets = pytest.mark.parametrize("net", recipe.NETS)
RECORDS: dict[str, dict[str, Any]] = {
    "PublicTest_model.t7": {"acc": 71.496, "epoch": 217},
    "PrivateTest_model.t7": {
        "best_PublicTest_acc": 71.496,
        "best_PrivateTest_acc": torch.tensor(73.112),
        "best_PublicTest_acc_epoch": 217,
        "best_PrivateTest_acc_epoch": 230,
    },
    "Test_model.t7": {"best_Test_acc": 95.96, "best_Test_acc_epoch": 31},
}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


class VGG(nn.Module):
    """Stands for the released class: its children have the released names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*vgg19(64), nn.AvgPool2d(1))
        self.classifier = nn.Linear(512, 7)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = list(resnet18(64))
        self.conv1, self.bn1 = layers[0], layers[1]
        for stage in range(4):
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers[3 + 2 * stage : 5 + 2 * stage]))
        self.linear = nn.Linear(512, 7)


RELEASED = {"vgg19": (VGG, "models.vgg"), "resnet18": (ResNet, "models.resnet")}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a network with the recipe's weights whose classes are found under the release's names when it is saved."""

    def built(net: str) -> nn.Module:
        kind, module = RELEASED[net]
        monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
        monkeypatch.setitem(sys.modules, module, fake := types.ModuleType(module))
        for cls in (kind, Block):
            monkeypatch.setattr(cls, "__module__", module)
            setattr(fake, cls.__name__, cls)
        found = kind()
        found.load_state_dict(released_weights(net))
        return found

    return built


@nets
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("parallel", [False, True])
def test_every_layout_gives_the_networks_weights(tmp_path: Path, net: str, name: str, parallel: bool) -> None:
    """As saved on a GPU: the names of `state_dict`, also behind DataParallel, beside records."""
    weights = released_weights(net)
    named = {f"module.{key}": value for key, value in weights.items()} if parallel else weights
    torch.save({"net": named, **RECORDS[name]}, tmp_path / name)
    assert same(read_weights(tmp_path / name), weights)


@nets
def test_a_network_saved_whole_is_read_without_its_class(tmp_path: Path, net: str, whole: Any) -> None:
    """As the released scripts save on a CPU: the module itself."""
    torch.save({"net": whole(net), **RECORDS["Test_model.t7"]}, tmp_path / "Test_model.t7")
    for name in ("models", *(module for _, module in RELEASED.values())):
        sys.modules.pop(name, None)  # nothing can be built from now on
    assert same(read_weights(tmp_path / "Test_model.t7"), released_weights(net))


@nets
def test_the_renamed_weights_fill_the_model_and_mean_the_same(net: str) -> None:
    model = build(CnnConfig(net=net), label_set("basic7"), num_frames=1, seed=1)  # type: ignore[arg-type]
    weights = released_weights(net)
    renamed = foreign.ours(weights)
    assert len(renamed) == len(weights) and renamed.keys() == model.state_dict().keys()
    assert foreign.net_of(weights) == net
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    assert same(foreign.ours(old), renamed)  # torch before 0.4.1 kept no counters


def test_a_block_keeps_its_parts_apart() -> None:
    """conv1 and conv2 of a block have one shape where it changes nothing, so a swap would load."""
    weights = released_weights("resnet18")
    renamed = foreign.ours(weights)
    assert torch.equal(renamed["body.4.conv2.weight"], weights["layer1.1.conv2.weight"])
    assert torch.equal(renamed["body.9.shortcut.0.weight"], weights["layer4.0.shortcut.0.weight"])
    assert torch.equal(renamed["body.10.bn1.running_var"], weights["layer4.1.bn1.running_var"])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            {"fc.weight": torch.ones(2)},
            r"expected a released VGG19 or ResNet18, got names such as fc\.weight\. Give a \.t7",
        ),
        ({}, "got names such as none"),
        (
            {
                "conv1.weight": torch.ones(1),
                "linear.weight": torch.ones(1),
                "layer1.0.downsample.0.weight": torch.ones(1),
            },
            r"the names of the released resnet18, got layer1\.0\.downsample\.0\.weight among them",
        ),
        (
            {
                "features.0.weight": torch.ones(1),
                "classifier.weight": torch.ones(1),
                "classifier.0.weight": torch.ones(1),
            },
            r"the names of the released vgg19, got classifier\.0\.weight among them",
        ),
    ],
)
def test_other_networks_are_refused_by_name(names: list[str], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^a\.t7: .*{says}"):
        foreign.ours(dict.fromkeys(names, torch.ones(1)), where="a.t7")


def test_a_file_of_torch_before_1_6_is_read_too(tmp_path: Path) -> None:
    weights = {name: value for name, value in released_weights("resnet18").items() if name.startswith("linear")}
    path = tmp_path / "Test_model.t7"
    torch.save({"net": weights, "best_Test_acc": 95.96}, path, _use_new_zipfile_serialization=False)
    assert same(read_weights(path), weights)


def test_a_module_that_holds_itself_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net._modules["again"] = net
    torch.save({"net": net}, tmp_path / "a.t7")
    with pytest.raises(CheckpointError, match=r"the safe reader refuses \(modules that hold each other"):
        read_weights(tmp_path / "a.t7")
