"""Saved models of strangers: folders whose configuration, card or weights are damaged, lie or lead elsewhere."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dfer.emotions import BASIC7, label_set
from dfer.jobs.saved import run_of
from dfer.models.build import build
from dfer.models.card import card
from dfer.models.config import DferClipConfig, TemporalConfig, TowersConfig
from dfer.models.saved import Origin, SavedConfig, open_saved
from dfer.models.saving import prepared, save
from dfer.storage import Folder
from tests.hostile import configs, tensors_kit, values
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 200
FILES = ("config.yaml", "README.md", "model.safetensors")


@dataclass
class Seeds:
    """A whole saved model, and the values of its configuration."""

    folder: Path
    plain: dict[str, Any]


def seeds(folder: Path) -> Seeds:
    folder.mkdir()
    temporal = TemporalConfig(depth=1, heads=1, head_dim=8, mlp_dim=8)
    named = DferClipConfig(towers=TowersConfig(arch="tiny-conv-64"), temporal=temporal, num_contexts=2)
    model = build(named, label_set("basic7"), num_frames=2, seed=0)
    found = SavedConfig(
        model=prepared(named)[0],
        classes=BASIC7,
        normalisation=model.normalisation,
        data={"frames": 2, "size": 64, "augment": {"crop": True}},
        recipe={"epochs": 2, "batch": 4, "optim": {"name": "sgd", "groups": {"prompts": {"lr": 0.1}}}},
        sha256="",
        bytes=0,
        origin=Origin(made_by="export", source="x", source_sha256="ab" * 32),
    )
    # Only part of the weights, so that a case is written in a moment: reading them is what is tried here.
    few = {name: value for name, value in model.state_dict().items() if name.startswith(("temporal.", "prompts."))}
    save(Folder(folder / "model"), found, few, card=card, own={})
    return Seeds(folder=folder / "model", plain=yaml.safe_load((folder / "model" / "config.yaml").read_text()))


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    draw = rng("saved_models")
    yield _case(seeds, "as it was written", {})
    for name in FILES:
        yield _case(seeds, f"no {name}", {name: None}, refuse=name != "config.yaml")
        yield _case(seeds, f"an empty {name}", {name: b""}, refuse=name == "model.safetensors")
    for name, text in configs.TEXTS.items():
        yield _case(seeds, f"config.yaml: {name}", {"config.yaml": text.encode()})
        yield _case(seeds, f"after its version: {name}", {"config.yaml": b"saved_model: 1\n" + text.encode()})
    for path in values.PATHS:
        for files in ({"text": path}, {path: "text.yaml"}, {"towers.arch": path}):
            yield _config(seeds, f"a file {path[:20]!r}", {**seeds.plain, "files": files})
        model = {**seeds.plain["model"], "text": f"{path}.yaml"}
        yield _config(seeds, f"texts {path[:20]!r}", {**seeds.plain, "model": model}, refuse=False)
    for tree in values.drawn(values.trees(), 40):
        key = draw.choice(sorted(seeds.plain))
        yield _config(seeds, f"{key} {tree!r:.50}", {**seeds.plain, key: tree}, refuse=False)
    for number, (name, _, data) in enumerate(tensors_kit.headers()):
        if number % 2 == 0 and len(data) < 2**22:
            signed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            text = values.as_json({**seeds.plain, **signed})
            yield _case(seeds, f"weights: {name}", {"config.yaml": text, "model.safetensors": data})
    yield MUTATED
    for _ in range(COUNT):
        yield _case(seeds, *_mutated(seeds, draw))


def _mutated(seeds: Seeds, draw: random.Random) -> tuple[str, dict[str, bytes | None]]:
    act = draw.randrange(3)
    if act == 0:
        return "a changed tree", {"config.yaml": values.as_json(values.changed(seeds.plain, draw))}
    if act == 1:
        how, text = values.broken_json(json.dumps(seeds.plain).encode(), draw)
        return f"config.yaml: {how}", {"config.yaml": text}
    file = draw.choice(FILES)
    how, text = values.damaged((seeds.folder / file).read_bytes(), draw)
    return f"{file}: {how}", {file: text}


def _config(seeds: Seeds, name: str, plain: dict[str, Any], *, refuse: bool = False) -> Case:
    return _case(seeds, name, {"config.yaml": values.as_json(plain)}, refuse=refuse)


def _case(seeds: Seeds, name: str, files: dict[str, bytes | None], *, refuse: bool = False) -> Case:
    def write(at: Path) -> None:
        shutil.copytree(seeds.folder, at / "model")
        for file, data in files.items():
            (at / "model" / file).unlink()
            if data is not None:
                (at / "model" / file).write_bytes(data)

    return Case(name=name, write=write, reads=_READS, refuse=tuple(_READS) if refuse else ())


def _weights(at: Path) -> None:
    found = open_saved(str(at / "model"))
    if found is not None:
        assert all(value.device.type == "cpu" for value in found.weights().values())


def _run(at: Path) -> None:
    found = open_saved(str(at / "model"))
    if found is not None:
        run_of(found, overrides=["data.shards=x"])
        card(found.config)


_READS: dict[str, Callable[[Path], object]] = {"weights": _weights, "run": _run}
