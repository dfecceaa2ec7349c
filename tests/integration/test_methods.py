"""Every method under every engine: DDP and DeepSpeed ZeRO 0 to 3, fp32 and bf16, one and two ranks, stopped and resumed
here and at the other world size. One worker process a rank runs all cases (method_worker.py).

`make test` runs one method of each kind under two engines (DK-CLIP under one), `make test-all` all under all.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.ranks import finish_ranks
from tests.methods import METHODS

pytestmark = pytest.mark.integration

WORKER = Path(__file__).with_name("method_worker.py")
ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")
SHORT_ENGINES = ("ddp", "zero3")
SHORT = [name for name, method in METHODS.items() if method.kind]
ELSEWHERE = {("dk_clip", "zero3")}
"""Of the long form: a third of the seconds of this file. `make test` trains it under ZeRO 3 in test_dk_clip.py."""
EXACT = 2e-5
"""Rounding: a step's gradient is summed in another order. Weights move by more than 1e-3."""
LOW = 8 * torch.finfo(torch.bfloat16).eps
"""1/16: eight roundings to bf16. Measured over all methods and engines: the first loss differs from that in fp32 by at
most 2.8 % (VGG19, the deepest), last losses and updates under ZeRO 3 from those of DDP by at most 1.7 % and 2.0 %."""
Found = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Found:
    """Weights after the last step, or a message, by world size and case. Two ranks read what one rank saved; one rank
    then reads what two saved."""
    whole = request.config.getoption("long")
    pairs = [(name, engine) for name in METHODS for engine in ENGINES]
    cases = (
        pairs if whole else [(n, e) for n, e in pairs if n in SHORT and e in SHORT_ENGINES and (n, e) not in ELSEWHERE]
    )
    folders = {ranks: tmp_path_factory.mktemp(f"world{ranks}") for ranks in (1, 2)}
    results: Found = {1: {}, 2: {}}
    for ranks, other in ((1, 2), (2, 1), (1, 2)):
        words = (WORKER, folders[ranks], folders[other], *(f"{name}:{engine}" for name, engine in cases))
        finish_ranks(words, ranks=ranks, timeout=1500)
        results[ranks] |= torch.load(folders[ranks] / "weights.pt", weights_only=True)
        results[ranks] |= json.loads((folders[ranks] / "refused.json").read_text())
    return results


@pytest.fixture(autouse=True)
def _of_the_long_form(request: pytest.FixtureRequest) -> None:
    case = request.node.callspec.params
    if (case["name"], case.get("engine")) in ELSEWHERE and not request.config.getoption("long"):
        pytest.skip("of the long form; make test-all runs it")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def norm(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: Iterable[str]) -> float:
    """Euclidean norm of the difference of the named weights."""
    return float(torch.stack([(one[name] - other[name]).double().square().sum() for name in names]).sum().sqrt())


methods = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in METHODS]
)
both = pytest.mark.parametrize("ranks", (1, 2))
CASES = [pytest.param(name, marks=[] if name in SHORT_ENGINES else [pytest.mark.long]) for name in ENGINES]
every = pytest.mark.parametrize("engine", CASES)
beside_ddp = pytest.mark.parametrize("engine", CASES[1:])


@pytest.mark.slow("the first to ask for three workers, which train every method under every engine")
@methods
@both
@beside_ddp
def test_engines_agree(found: Found, name: str, ranks: int, engine: str) -> None:
    assert distance(found[ranks][f"{name} {engine}"], found[ranks][f"{name} ddp"]) < EXACT


@methods
def test_training_moves_the_weights_of_every_group(found: Found, name: str) -> None:
    method = METHODS[name]
    learner = method.build()
    names = {id(parameter): key for key, parameter in learner.named_parameters()}
    start, end = learner.state_dict(), found[1][f"{name} ddp"]
    for group in learner.param_groups().values():
        moved = [(end[names[id(p)]] - start[names[id(p)]]).abs().max().item() for p in group.params]
        assert max(moved) > 10 * EXACT


@methods
@every
def test_two_ranks_are_one(found: Found, name: str, engine: str) -> None:
    """Where a clip's loss depends on itself alone, or on all clips of the step; dropout differs, as masks do."""
    method = METHODS[name]
    if method.random or method.coupling == "micro_batch":
        pytest.skip("the micro-batches of two ranks are others")
    assert distance(found[2][f"{name} {engine}"], found[1][f"{name} {engine}"]) < EXACT


@methods
@both
@every
def test_a_resumed_run_ends_as_the_undisturbed_one(found: Found, name: str, ranks: int, engine: str) -> None:
    assert distance(found[ranks][f"{name} {engine} resumed"], found[ranks][f"{name} {engine}"]) == 0


@methods
@both
@every
def test_it_continues_at_the_other_world_size(found: Found, name: str, ranks: int, engine: str) -> None:
    method, moved = METHODS[name], found[ranks][f"{name} {engine} moved"]
    if method.coupling == "micro_batch":
        assert isinstance(moved, str) and "expected" in moved
    elif not method.random:
        assert distance(moved, found[ranks][f"{name} {engine}"]) < EXACT


@methods
@both
@every
def test_bf16_starts_near_fp32_and_is_used(found: Found, name: str, ranks: int, engine: str) -> None:
    low, full = (found[ranks][f"{name} {engine} {case}"]["losses"] for case in ("bf16 losses", "losses"))
    assert 0 < abs(low[0] / full[0] - 1) < LOW


@methods
@both
@beside_ddp
def test_engines_agree_in_bf16(found: Found, name: str, ranks: int, engine: str) -> None:
    """The first loss but for the order of a sum, the last one and all updates of the weights within bf16 rounding."""
    ours, theirs = (found[ranks][f"{name} {each} bf16 losses"]["losses"] for each in (engine, "ddp"))
    first, last = (ours / theirs - 1).abs()
    assert first < EXACT and last < LOW
    ours, theirs = (found[ranks][f"{name} {each} bf16"] for each in (engine, "ddp"))
    start = {key: value.detach() for key, value in METHODS[name].build().named_parameters() if value.requires_grad}
    assert norm(ours, theirs, start) < LOW * norm(start, theirs, start)


@methods
@both
@every
def test_a_resumed_bf16_run_ends_as_the_undisturbed_one(found: Found, name: str, ranks: int, engine: str) -> None:
    assert distance(found[ranks][f"{name} {engine} bf16 resumed"], found[ranks][f"{name} {engine} bf16"]) == 0
