"""One rank of tests/integration/test_engines.py: runs every case in one process group and writes what it measured.

Usage, in every rank: engine_worker.py OWN_FOLDER OTHER_FOLDER CASES EXTENSIONS. Checkpoints go to OWN_FOLDER; those of
another world size are read from OTHER_FOLDER when it holds any; what torch compiles, to EXTENSIONS. The oracle is plain
torch on the whole batch in one process.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfer.distributed import World, barrier, from_environment, gather_objects, process_group
from dfer.errors import DferError
from dfer.recognition import ClipBatch, Group, Progress
from dfer.run.checkpoints import Checkpoints
from dfer.storage import Folder
from dfer.training import build as build_module
from dfer.training.build import build_engine
from dfer.training.config import AdamConfig, AdamWConfig, EngineConfig, GroupConfig, OptimConfig, Rates, SgdConfig
from dfer.training.engine import Engine, StepReport
from tests.unit.training.stubs import TinyRecognizer, clips, part, share

BATCH, STEPS, SAVED_AT, CLIP = 8, 5, 3, 0.5
ENGINES = {"ddp": EngineConfig(name="ddp", clip_norm=CLIP)} | {
    f"zero{stage}": EngineConfig(zero=stage, clip_norm=CLIP)
    for stage in (0, 1, 2, 3)  # type: ignore[arg-type]
}
GROUPS = {"trunk": GroupConfig(lr=0.05), "head": GroupConfig(lr=0.5, weight_decay=0.1)}
SGD = SgdConfig(groups=GROUPS, weight_decay=0.01)
# eps damps what rounding does to gradients near zero.
ADAMW = AdamWConfig(groups=GROUPS, weight_decay=0.01, no_decay=True, eps=1e-2)


# Adam whose L2 term follows the clamp, rates that do not end at 0, and an average of the weights.
ADAM = AdamConfig(groups=GROUPS, weight_decay=0.01, eps=1e-2)
CLAMP, END, DECAY = 0.002, 0.02, 0.8
SOURCES = ("ddp", "zero3")
SAVED = {"adamw": tuple(ENGINES), "sgd": tuple(ENGINES) if os.environ.get("DFER_TEST_LONG") else SOURCES}
"""By optimizer, the engines whose checkpoints all engines continue; the long form has them all."""


def factor(step: int) -> float:
    return 1 / (1 + step)


def progress(step: int) -> Progress:
    return Progress(epoch=step // 2, step=step, fraction=0.0)


def oracle(
    config: OptimConfig, *, steps: int, clip: float | None = CLIP, size: int = BATCH
) -> tuple[dict[str, Tensor], float]:
    """Weights and last gradient norm of plain torch on the full batch."""
    model = TinyRecognizer()
    trunk, head = list(model.trunk.parameters()), [*model.head.parameters(), model.temperature]
    if isinstance(config, SgdConfig):
        groups = [
            {"params": trunk, "lr": 0.05, "weight_decay": 0.01},
            {"params": head, "lr": 0.5, "weight_decay": 0.1},
        ]
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.9)
    else:
        groups = [
            {"params": [p], "lr": lr, "weight_decay": wd if p.ndim > 1 else 0.0}
            for part_, lr, wd in ((trunk, 0.05, 0.01), (head, 0.5, 0.1))
            for p in part_
        ]
        optimizer = torch.optim.AdamW(groups, eps=1e-2)
    rates = [group["lr"] for group in optimizer.param_groups]
    norm = torch.zeros(())
    for step in range(steps):
        batch = clips(size, seed=step)
        loss = torch.stack(list(model.loss(model(batch), batch, progress(step)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*trunk, *head], clip or 1e9)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor(step)
        optimizer.step()
    return model.state_dict(), float(norm)


def options_oracle(*, clamp: float | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and averages of plain torch under ADAM after all steps."""
    model = TinyRecognizer()
    trunk, head = list(model.trunk.parameters()), [*model.head.parameters(), model.temperature]
    optimizer = torch.optim.Adam(
        [{"params": trunk, "weight_decay": 0.01}, {"params": head, "weight_decay": 0.1}], eps=1e-2
    )
    averages = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for step in range(STEPS):
        batch = clips(BATCH, seed=step)
        optimizer.zero_grad()
        torch.stack(list(model.loss(model(batch), batch, progress(step)).values())).sum().backward()
        if clamp is not None:
            torch.nn.utils.clip_grad_value_([*trunk, *head], clamp)
        for group, rate in zip(optimizer.param_groups, (0.05, 0.5)):
            group["lr"] = END + factor(step) * (rate - END)
        optimizer.step()
        for name, p in model.named_parameters():
            if p.requires_grad:
                averages[name] = DECAY * averages[name] + (1 - DECAY) * p.detach()
    return model.state_dict(), averages


def averages_of(engine: Engine) -> dict[str, Tensor]:
    found = {key: value for key, value in engine.optimizer_state().items() if key.endswith("/average")}
    return {key.removesuffix("/average"): value for key, value in found.items()}


class LeftOut(TinyRecognizer):
    """Trains a layer that no loss knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.nn.Linear(5, 5)

    def param_groups(self) -> dict[str, Group]:
        groups = super().param_groups()
        return {**groups, "head": Group(params=[*groups["head"].params, *self.spare.parameters()])}


def build(
    name: str,
    world: World,
    *,
    optim: OptimConfig = SGD,
    micro: int = 2,
    seed: int = 0,
    ema: float | None = None,
    **change: Any,
) -> Engine:
    config = EngineConfig(**{**vars(ENGINES[name]), **change})
    key_of = "clip/{:03d}".format
    return build_engine(
        config,
        TinyRecognizer(seed=seed),
        optim=optim,
        world=world,
        global_batch=BATCH,
        micro_batch=micro,
        key_of=key_of,
        seed=1,
        ema=ema,
    )


def step(engine: Engine, world: World, number: int, batch: ClipBatch | None = None, *, end: float = 0.0) -> StepReport:
    micro = BATCH // world.size // engine.accumulation
    cut = share(batch or clips(BATCH, seed=number), rank=world.rank, world_size=world.size, micro_batch=micro)
    return engine.step(cut, progress=progress(number), rates=Rates(factor=factor(number), end=end))


def error(engine: Engine, expected: dict[str, Tensor]) -> float:
    """Largest difference to the oracle's weights (first rank)."""
    weights = engine.weights()
    return max(((weights[k] - expected[k]).abs().max().item() for k in weights), default=0.0)


def case_oracle(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Weights and norm after some steps against the oracle; a forward pass in between must not disturb."""
    out: dict[str, Any] = {}
    for optim in (SGD, ADAMW):
        expected, norm = oracle(optim, steps=STEPS)
        for micro in (4 // world.size, 1):
            # Other ranks start from other weights: the first rank's must win.
            engine = build(name, world, optim=optim, micro=micro, seed=world.rank)
            for number in range(STEPS):
                report = step(engine, world, number)
                logits = engine.forward(clips(3, seed=9)).logits
            frozen = engine.task.learner.frozen.weight
            out[f"{optim.name}/{micro}"] = {
                "weights": error(engine, expected),
                "norm": abs(report.grad_norm - norm),
                "lr": report.lr,
                "clips": report.clips,
                "logits": list(logits.shape),
                "frozen_grad": frozen.grad is not None,
                "state": sorted(engine.optimizer_state()),
            }
    return out


def case_uneven(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """46 clips, 8 at once: on two ranks 8, 8 and 7, held to plain torch on all of them."""
    size, micro = 46, 8
    engine = build_engine(
        ENGINES[name], TinyRecognizer(), optim=SGD, world=world, global_batch=size, micro_batch=micro, seed=1
    )
    cut = share(clips(size), rank=world.rank, world_size=world.size, micro_batch=micro)
    report = engine.step(cut, progress=progress(0))
    expected, norm = oracle(SGD, steps=1, size=size)
    return {
        "weights": error(engine, expected),
        "norm": abs(report.grad_norm - norm),
        "sizes": [len(batch.labels) for batch in cut],
        "clips": report.clips,
    }


def case_save(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Save after some steps, for this and the other world size."""
    for optim in (SGD, ADAMW):
        if name not in SAVED[optim.name]:
            continue
        engine = build(name, world, optim=optim)
        for number in range(SAVED_AT):
            step(engine, world, number)
        store = Checkpoints(Folder(folder / f"{name}_{optim.name}"), world=world)
        store.start(None)
        store.save(SAVED_AT, weights=engine.weights(), optimizer=engine.optimizer_state(), state={})
        store.finish()
    return {}


def case_load(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Continue what every engine saved, here and at the other world size, up to the oracle's weights."""
    out = {}
    for optim in (SGD, ADAMW):
        expected, _ = oracle(optim, steps=STEPS)
        engine = build(name, world, optim=optim, seed=3)
        step(engine, world, 7)  # what was there before must not matter, here and from one checkpoint to the next
        for source in (folder, other):
            for saved in SAVED[optim.name]:
                checkpoint = Checkpoints(Folder(source / f"{saved}_{optim.name}"), world=world).latest()
                if checkpoint is None:
                    continue
                engine.load_weights(checkpoint.weights())
                engine.load_optimizer_state(checkpoint.optimizer())
                for number in range(SAVED_AT, STEPS):
                    report = step(engine, world, number)
                where = "here" if source == folder else "elsewhere"
                out[f"{optim.name} {saved} {where}"] = {"weights": error(engine, expected), "lr": report.lr}
    return out


def options_engine(name: str, world: World, *, seed: int = 0) -> Engine:
    return build(name, world, optim=ADAM, seed=seed, ema=DECAY, clip_norm=None, clip_value=CLAMP)


def options_errors(engine: Engine) -> dict[str, Any]:
    """Largest differences of weights and averages to the oracle's; whether the average can be shown and put away."""
    weights, averages = options_oracle(clamp=CLAMP)
    found, trained = averages_of(engine), engine.weights()
    engine.show_average()
    shown = engine.weights()
    engine.show_trained()
    back = engine.weights()
    return {
        "names": not found or found.keys() == averages.keys(),
        "weights": error(engine, weights),
        "average": max(((found[k] - averages[k]).abs().max().item() for k in found), default=0.0),
        "shown": all(torch.equal(shown[k], found.get(k, trained[k])) for k in shown),
        "back": all(torch.equal(back[k], trained[k]) for k in trained),
    }


def case_options(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Clamp, Adam, rates with an end and an average, held to plain torch; saved on the way for `case_resumed`."""
    engine = options_engine(name, world, seed=world.rank)
    store = Checkpoints(Folder(folder / f"{name}_options"), world=world)
    store.start(None)
    for number in range(STEPS):
        if number == SAVED_AT:
            state = {"average": engine.decay}
            store.save(SAVED_AT, weights=engine.weights(), optimizer=engine.optimizer_state(), state=state)
            store.finish()
        report = step(engine, world, number, end=END)
    free, _ = options_oracle(clamp=None)
    return {**options_errors(engine), "lr": report.lr, "matters": error(engine, free)}


def case_resumed(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Continue what some engines saved at the other world size with those options."""
    out = {}
    engine = options_engine(name, world, seed=3)
    step(engine, world, 7, end=END)  # what was there before must not matter
    for saved in SOURCES:
        checkpoint = Checkpoints(Folder(other / f"{saved}_options"), world=world).latest()
        assert checkpoint is not None
        engine.load_weights(checkpoint.weights())
        engine.load_optimizer_state(checkpoint.optimizer())
        evaluated = checkpoint.evaluated()
        same = all(torch.equal(evaluated[key], value) for key, value in averages_of(engine).items())
        for number in range(SAVED_AT, STEPS):
            step(engine, world, number, end=END)
        out[saved] = {**options_errors(engine), "evaluated": same}
    return out


def case_refused(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """A broken loss, and a broken gradient, on one rank only: all raise before the update."""
    out = {}
    for what, value in (("loss", 255), ("gradient", 0)):
        engine = build(name, world, micro=1)
        step(engine, world, 0)
        before = engine.weights()
        batch = clips(BATCH, seed=1)
        batch.frames[6] = value
        try:
            step(engine, world, 1, batch)
            message, code = "nothing raised", 0
        except DferError as caught:
            message, code = str(caught), caught.exit_code
        same = all(torch.equal(before[k], v) for k, v in engine.weights().items())
        out[what] = {"messages": gather_objects(message), "code": code, "unchanged": same}
    return out


def case_left_out(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """A trained parameter that gets no gradient: the same words from every engine, in the first step."""
    engine = build_engine(
        ENGINES[name],
        LeftOut(),
        optim=SGD,
        world=world,
        global_batch=BATCH,
        micro_batch=BATCH // world.size // 2,
        seed=1,
    )
    before = engine.weights()
    try:
        step(engine, world, 0)
        message, code = "nothing raised", 0
    except DferError as caught:
        message, code = str(caught), caught.exit_code
    same = all(torch.equal(before[k], v) for k, v in engine.weights().items())
    return {"messages": gather_objects(message), "code": code, "unchanged": same}


def case_low(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """bf16 and fp16 stay near the oracle with fp32 weights; an fp16 overflow skips the update and halves the scale."""
    build_module.check_precision = lambda precision, device: None  # a CPU computes fp16 well enough for this
    expected, _ = oracle(SGD, steps=STEPS)
    out: dict[str, Any] = {}
    for precision in ("bf16", "fp16"):
        engine = build(name, world, precision=precision)
        engine._scale.value = min(engine._scale.value, 2.0**8)  # no overflow on the way
        for number in range(STEPS):
            report = step(engine, world, number)
        types = sorted({str(v.dtype) for v in engine.weights().values()})
        out[precision] = {"weights": error(engine, expected), "types": types, "applied": report.applied}
    before = engine.weights()
    engine._scale.value = 2.0**40
    report = step(engine, world, 0)
    same = all(torch.equal(before[k], v) for k, v in engine.weights().items())
    state = engine.optimizer_state()
    after = step(engine, world, 0)
    out["overflow"] = {
        "applied": report.applied,
        "unchanged": same,
        "scale": [report.loss_scale, after.loss_scale],
        "saved": state["loss_scale"].tolist() if state else None,
    }
    return out


def case_padding(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Rows that are padding neither count nor weigh: the last micro-batch of each rank is all padding."""
    engine = build(name, world, micro=1)
    full = clips(BATCH, seed=0)
    size = BATCH // world.size
    kept = [r * size + i for r in range(world.size) for i in range(size - 1)]
    full.index[[r * size + size - 1 for r in range(world.size)]] = -1
    report = step(engine, world, 0, full)
    model = TinyRecognizer()
    batch = ClipBatch(frames=full.frames[kept], labels=full.labels[kept], index=full.index[kept])
    terms = model.loss(model(batch), part(batch, 0, len(kept)), progress(0))
    return {"loss": abs(report.loss - float(sum(terms.values()).detach())), "clips": report.clips, "kept": len(kept)}


def case_agreement(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """Only the first rank reads and writes: all ranks get its tensors, and raise what it alone fails in."""
    if name != "ddp":
        return {}
    private = tempfile.mkdtemp(dir=folder)  # another one on every rank
    own = Checkpoints(Folder(private), world=world)
    own.start(None)
    own.save(1, weights={"w": torch.arange(3.0), "none": torch.zeros(0)}, optimizer={}, state={"rank": 0})
    own.finish()

    def read() -> str:
        found = own.latest()
        assert found is not None
        return f"{found.folder.name[:13]} {found.state} {found.weights()['w'].tolist()} {len(found.weights())}"

    def damaged() -> str:
        for path in Path(private).glob("checkpoints/*/weights.safetensors"):
            path.write_bytes(b"")
        return str(own.latest())

    def unwritable() -> str:
        blocked = Checkpoints(Folder(folder / "blocked"), world=world)
        if world.is_first:
            (folder / "blocked").write_text("in the way")
        return str(blocked.start(None))

    out = {}
    for what, action in (("read", read), ("damaged", damaged), ("unwritable", unwritable)):
        try:
            told = action()
        except DferError as caught:
            told = f"{type(caught).__name__} {caught}"
        out[what] = gather_objects(told)
    if world.is_first:
        (folder / "blocked").unlink()
    return out


def case_closed(name: str, world: World, folder: Path, other: Path) -> dict[str, Any]:
    """A closed engine frees its model: the folds of a cross-validation follow each other in one process."""
    engine = build(name, world)
    step(engine, world, 0)
    module = weakref.ref(engine.task.learner.trunk)
    engine.close()
    del engine
    gc.collect()
    return {"freed": module() is None}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")
}


def run(world: World, folder: Path, other: Path, cases: list[str]) -> Iterator[tuple[str, Any]]:
    for case in cases:
        for name in ENGINES:
            try:
                yield f"{case}/{name}", CASES[case](name, world, folder, other)
            except Exception:
                # The other ranks would wait for this one for ever.
                print(case, name, traceback.format_exc(), flush=True)
                raise
    barrier()


def stop_on_broken_clip(world: World) -> int:
    """What a user sees: every rank ends with the error's exit code, the first one with its message."""
    with process_group(world, timeout_s=60):
        try:
            batch = clips(BATCH)
            batch.frames[6] = 255
            step(build("zero2", world), world, 0, batch)
        except DferError as caught:
            if world.is_first:
                compiler = "torch._inductor.compile_fx" in sys.modules
                print(f"compiler imported: {compiler}\nerror: {caught}", file=sys.stderr, flush=True)
            barrier()  # a launcher kills the first rank when another one is faster out
            return caught.exit_code
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "broken":
        sys.exit(stop_on_broken_clip(from_environment()))
    own, others = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["TORCH_EXTENSIONS_DIR"] = sys.argv[4]
    this = from_environment()
    if this.size == 1:
        warnings.simplefilter("error")
    with process_group(this, timeout_s=120):
        results = dict(run(this, own, others, sys.argv[3].split(",")))
    if this.is_first:
        (own / "results.json").write_text(json.dumps(results))
