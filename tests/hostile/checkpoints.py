"""Checkpoints and leases of a run folder, whose hashes are made to fit: as from somebody who can write them."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dfer.distributed import World
from dfer.jobs.facts import load_checkpoint
from dfer.run.checkpoints import Checkpoints
from dfer.storage import Folder
from dfer.training.engine import Engine
from dfer.training.loop import resume
from dfer.training.state import Layout, check_names, check_shapes
from tests.hostile import tensors_kit, values
from tests.hostile.values import rng
from tests.hostile.worker import MUTATED, Case

COUNT = 320
FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
CUT = Layout(ranks=1, micro_batch=3)
STATE = {
    "layout": asdict(CUT),
    "training": {"epoch": 1, "step": 0, "global_step": 3, "evaluate": False},
    "manifest_sha256": "ab" * 32,
    "best": {"protocol": "best_on_val", "metric": "uar", "value": 0.5, "step": 3, "epoch": 1},
}


class Model(nn.Module):
    """Stands for a recognizer and for its engine."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 1)
        self.layout = CUT
        self.task = SimpleNamespace(learner=SimpleNamespace(coupling="micro_batch"))
        self.coupling = "micro_batch"

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        check_names("weights", got=weights, expected=self.state_dict())
        check_shapes("weights", got=weights, expected={name: value.shape for name, value in self.state_dict().items()})

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        check_names("optimizer state", got=state, expected=["a.weight/momentum_buffer"])


@dataclass
class Seeds:
    """A run with two checkpoints. newest, lease: the paths of the later one and of its lease in the run."""

    run: Path
    newest: Path
    lease: Path
    model: Model


def seeds(folder: Path) -> Seeds:
    model = Model()
    checkpoints = Checkpoints(Folder(folder / "run"), world=World())
    checkpoints.start(checkpoints.latest())
    for step in (2, 3):
        checkpoints.save(
            step, weights=model.state_dict(), optimizer={"a.weight/momentum_buffer": torch.ones(2, 3)}, state=STATE
        )
    checkpoints.finish()
    run = folder / "run"
    newest = sorted((run / "checkpoints").iterdir())[-1]
    (lease,) = (run / "lease").iterdir()
    return Seeds(run=run, newest=newest.relative_to(run), lease=lease.relative_to(run), model=model)


def cases(seeds: Seeds, mark: Path) -> Iterator[Case | None]:
    draw = rng("checkpoints")
    yield _case(seeds, "as it was saved", {})
    manifest = json.loads((seeds.run / seeds.newest / "manifest.json").read_text())
    for _ in range(25):
        how, text = values.broken_json(values.as_json(manifest), draw)
        yield _case(seeds, f"manifest: {how}", {"manifest.json": text}, sign=False)
        how, text = values.broken_json(values.as_json(STATE), draw)
        yield _case(seeds, f"state: {how}", {"state.json": text})
    for path in values.PATHS:
        files = {**manifest["files"], path: manifest["files"]["state.json"]}
        yield _case(
            seeds, f"a file {path[:20]!r}", {"manifest.json": values.as_json({**manifest, "files": files})}, sign=False
        )
    for tree in values.drawn(values.trees(), 50):
        key = draw.choice(sorted(STATE))
        yield _case(seeds, f"{key} {tree!r:.50}", {"state.json": values.as_json({**STATE, key: tree})})
        yield _case(
            seeds,
            f"manifest's files {tree!r:.40}",
            {"manifest.json": values.as_json({**manifest, "files": tree})},
            sign=False,
        )
    headers = [data for _, suffix, data in tensors_kit.headers() if suffix == "safetensors" and len(data) < 1_000_000]
    for number, data in enumerate(headers):
        yield _case(seeds, f"tensors {number}", {draw.choice(FILES[:2]): data})
    for name, tricks in TRICKS.items():
        yield Case(name=name, write=lambda at, tricks=tricks: tricks(_copied(seeds, at), seeds), reads=_reads(seeds))
    lease = (seeds.run / seeds.lease).read_bytes()
    yield MUTATED
    while True:
        file = draw.choice(FILES)
        how, data = _mutated(file, (seeds.run / seeds.newest / file).read_bytes(), draw)
        yield _case(seeds, f"{file}: {how}", {file: data}, sign=draw.random() < 0.9)
        how, data = _mutated("manifest.json", values.as_json(manifest), draw)
        yield _case(seeds, f"manifest: {how}", {"manifest.json": data}, sign=False)
        how, data = _mutated("lease.json", lease, draw)
        yield _case(seeds, f"lease: {how}", {}, lease=data)


def _mutated(name: str, data: bytes, draw: random.Random) -> tuple[str, bytes]:
    if name.endswith(".json") and draw.random() < 0.5:
        return "a changed tree", values.as_json(values.changed(json.loads(data), draw))
    return values.damaged(data, draw)


def _copied(seeds: Seeds, at: Path) -> Path:
    shutil.copytree(seeds.run, at / "run")
    return at / "run"


def _case(seeds: Seeds, name: str, files: dict[str, bytes], *, sign: bool = True, lease: bytes | None = None) -> Case:
    """The run with these files in its newest checkpoint; sign: the manifest is made to fit them."""

    def write(at: Path) -> None:
        run = _copied(seeds, at)
        folder = run / seeds.newest
        for file, data in files.items():
            (folder / file).write_bytes(data)
        if sign and files:
            manifest = json.loads((folder / "manifest.json").read_text())
            for file in FILES:
                data = (folder / file).read_bytes()
                manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        if lease is not None:
            (run / seeds.lease).write_bytes(lease)

    return Case(name=name, write=write, reads=_reads(seeds))


def _reads(seeds: Seeds) -> dict[str, Callable[[Path], object]]:
    def checkpoints(at: Path) -> Checkpoints:
        return Checkpoints(Folder(at / "run"), world=World())

    def best(at: Path) -> None:
        found = checkpoints(at).best()
        if found is not None:
            load_checkpoint(cast(Any, seeds.model), found)

    return {
        "resume": lambda at: resume(cast(Engine, seeds.model), checkpoints(at).latest(), steps_per_epoch=3),
        "best": best,
    }


def _link(run: Path, seeds: Seeds) -> None:
    (run / seeds.newest / "state.json").unlink()
    (run / seeds.newest / "state.json").symlink_to("/dev/zero")


def _large(file: str) -> Callable[[Path, Seeds], None]:
    def write(run: Path, seeds: Seeds) -> None:
        with (run / seeds.newest / file).open("r+b") as opened:
            opened.truncate(2**31 if file.endswith("safetensors") else 8 * 2**30)

    return write


def _named(*names: str) -> Callable[[Path, Seeds], None]:
    def write(run: Path, seeds: Seeds) -> None:
        for name in names:
            shutil.copytree(run / seeds.newest, run / "checkpoints" / name)

    return write


TRICKS: dict[str, Callable[[Path, Seeds], None]] = {
    "a state that is a device": _link,
    "a large manifest": _large("manifest.json"),
    "a large state": _large("state.json"),
    "large weights": _large("weights.safetensors"),
    "a manifest that is a folder": lambda run, seeds: (
        (run / seeds.newest / "manifest.json").unlink(),
        (run / seeds.newest / "manifest.json").mkdir(),
    )[-1],
    "strange names": _named(
        "step_00000009",
        "step_\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0669-g1-00000000",
        "step_99999999999999-g1-0a0a0a0a",
        "step_00000009-g1-zzzzzzzz",
        "\x1b[2J",
        "step_00000009-g-1-00000000",
        "a\nb",
        "\udcff",
    ),
    "a later step of the same lease": _named("step_00000099-g1-0a0a0a0a", "step_99999999-g999999999-ffffffff"),
    "a lease of the far future": lambda run, seeds: shutil.copy(
        run / seeds.lease, run / "lease" / "999999-ffffffff.json"
    ),
    "many leases": lambda run, seeds: [
        shutil.copy(run / seeds.lease, run / "lease" / f"{n:06d}-ffffffff.json") for n in range(1, 400)
    ],
    "a lease that is a folder": lambda run, seeds: (run / "lease" / "000099-ffffffff.json").mkdir(),
    "a large lease": lambda run, seeds: (run / seeds.lease).write_bytes(b" " * 2_000_000),
}
