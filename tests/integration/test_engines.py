"""Engines on one and two real gloo ranks, held to plain torch on the whole batch in one process.

A worker process per world size runs all cases (tests/integration/engine_worker.py); the tests below judge its results.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.integration.commands import environment
from tests.integration.ranks import finish_ranks, start_ranks

pytestmark = pytest.mark.integration

WORKER = Path(__file__).with_name("engine_worker.py")
ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")
CASES = re.findall(r"^def case_(\w+)", WORKER.read_text(), re.MULTILINE)
NO_COMPILER = str(Path(sys.executable).parent)
"""A PATH with Python alone."""
SAVED = {"adamw": ENGINES, "sgd": ENGINES if os.environ.get("DFER_TEST_LONG") else ("ddp", "zero3")}
"""By optimizer, the engines whose checkpoints all engines continue."""
READ = ["load", "resumed"]
"""Cases that read what the other world size saved."""
# Weights move by about 0.1 in the steps taken: this is rounding, not training.
TOLERANCE = {"sgd": 1e-6, "adamw": 1e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Measurements by world size. Two ranks read what one rank saved; one rank then reads what both saved."""
    folders = {ranks: tmp_path_factory.mktemp(f"world{ranks}") for ranks in (1, 2)}
    extensions = tmp_path_factory.mktemp("extensions")
    found: dict[int, dict[str, Any]] = {1: {}, 2: {}}
    before = [case for case in CASES if case not in READ]
    for ranks, other, cases in ((1, 2, before), (2, 1, CASES), (1, 2, READ)):
        # No compiler is in reach: DeepSpeed must not need one.
        path = NO_COMPILER if ranks == 1 else os.environ["PATH"]
        words = (WORKER, folders[ranks], folders[other], ",".join(cases), extensions)
        for told in finish_ranks(words, ranks=ranks, PATH=path):
            assert told.stdout == ""
        found[ranks] |= json.loads((folders[ranks] / "results.json").read_text())
    assert not list(extensions.iterdir())
    return found


both = pytest.mark.parametrize("ranks", (1, 2))
every = pytest.mark.parametrize("name", ENGINES)


@pytest.mark.slow("the first to ask for three workers, which run about 200 engines for all tests of this file")
@both
@every
def test_steps_equal_the_oracle(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    cases = results[ranks][f"oracle/{name}"]
    assert {key.partition("/")[0] for key in cases} == {"sgd", "adamw"} and len(cases) == 4
    for case, got in cases.items():
        optim = case.partition("/")[0]
        assert got["weights"] < TOLERANCE[optim], case
        assert got["norm"] < 1e-3, case
        assert got["clips"] == 8 and got["logits"] == [3, 5]


@both
@every
def test_a_smaller_last_micro_batch_gives_the_gradient_of_the_whole(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    got = results[ranks][f"uneven/{name}"]
    assert got["sizes"] == ([8] * 5 + [6] if ranks == 1 else [8, 8, 7]) and got["clips"] == 46
    assert got["weights"] < TOLERANCE["sgd"] and got["norm"] < 1e-3


@both
@every
def test_groups_keep_their_own_rates(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    rates = {case: got["lr"] for case, got in results[ranks][f"oracle/{name}"].items()}
    rates |= {case: got["lr"] for case, got in results[ranks][f"load/{name}"].items()}
    # The last step's factor is 1/5.
    for case, lr in rates.items():
        groups = {"trunk": 0.01, "head": 0.1}
        wanted = groups | {f"{k}/no_decay": v for k, v in groups.items()} if case.startswith("adamw") else groups
        assert lr == pytest.approx(wanted), case


@both
@every
def test_frozen_parts_have_no_gradient_and_no_state(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    for case, got in results[ranks][f"oracle/{name}"].items():
        assert got["frozen_grad"] is False
        slots = {"exp_avg", "exp_avg_sq", "step"} if case.startswith("adamw") else {"momentum_buffer"}
        names = {key.rpartition("/")[0] for key in got["state"]}
        assert {key.rpartition("/")[2] for key in got["state"]} == slots
        assert "head.weight" in names and "temperature" in names and len(names) == 9
        assert not any(name.startswith("frozen") for name in names)


@both
@every
def test_a_checkpoint_continues_under_any_engine_stage_and_world_size(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    loads = results[ranks][f"load/{name}"]
    assert set(loads) == {
        f"{optim} {saved} {where}" for optim in TOLERANCE for saved in SAVED[optim] for where in ("here", "elsewhere")
    }
    for case, got in loads.items():
        assert got["weights"] < TOLERANCE[case.partition(" ")[0]], case


@both
@every
def test_clamp_adam_rates_with_an_end_and_average_equal_the_oracle(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    got = results[ranks][f"options/{name}"]
    assert got["names"] and got["weights"] < 1e-5 and got["average"] < 1e-5
    assert got["matters"] > 1e-3  # so much would the weights differ without the clamp
    assert got["shown"] and got["back"]
    assert got["lr"] == pytest.approx({"trunk": 0.02 + 0.03 / 5, "head": 0.02 + 0.48 / 5})


@both
@every
def test_an_average_continues_under_any_engine_stage_and_world_size(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    found = results[ranks][f"resumed/{name}"]
    assert set(found) == {"ddp", "zero3"}
    for got in found.values():
        assert got["names"] and got["weights"] < 1e-5 and got["average"] < 1e-5
        assert got["shown"] and got["back"] and got["evaluated"]


@both
@every
def test_a_broken_loss_stops_all_ranks_before_the_update(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    got = results[ranks][f"refused/{name}"]["loss"]
    assert got["unchanged"] and got["code"] == 4
    assert len(got["messages"]) == ranks and len(set(got["messages"])) == 1
    assert got["messages"][0].startswith("step 1 (epoch 0): expected a finite loss, got spread=inf")
    # The micro-batch holds one clip, on the last rank: no other clip is accused.
    assert "with the clips clip/006. Nothing was updated." in got["messages"][0]


@both
@every
def test_a_broken_gradient_stops_all_ranks_before_the_update(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    got = results[ranks][f"refused/{name}"]["gradient"]
    assert got["unchanged"] and got["code"] == 4
    assert len(set(got["messages"])) == 1 and "expected finite gradients" in got["messages"][0]


@both
@every
def test_a_parameter_without_a_gradient_stops_all_ranks_with_its_name(
    results: dict[int, dict[str, Any]], name: str, ranks: int
) -> None:
    got = results[ranks][f"left_out/{name}"]
    assert got["unchanged"] and got["code"] == 2
    assert got["messages"] == ranks * [
        "step 0 (epoch 0): expected a gradient for every parameter that is trained, got none for spare.bias, "
        "spare.weight. Nothing was updated. Let the method use them in every loss, or freeze them "
        "(requires_grad=False)."
    ]


@both
@every
def test_low_precision_trains_fp32_weights(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    got = results[ranks][f"low/{name}"]
    for precision in ("bf16", "fp16"):
        assert got[precision]["types"] == ["torch.float32"]
        assert 1e-8 < got[precision]["weights"] < 1e-2  # not exact, so it was used; not far off either
    overflow = got["overflow"]
    assert overflow["applied"] is False and overflow["unchanged"]
    assert overflow["scale"] == [2.0**40, 2.0**39] and overflow["saved"] == [2.0**39, 0]


@both
@every
def test_padding_does_not_count(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    got = results[ranks][f"padding/{name}"]
    assert got["clips"] == got["kept"] < 8
    assert got["loss"] < 1e-6


@both
@every
def test_a_closed_engine_frees_its_model(results: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    # DeepSpeed itself keeps ZeRO 3's modules; their parameters are empty by then.
    assert results[ranks][f"closed/{name}"]["freed"] or name == "zero3"


def test_every_case_was_run_by_both(results: dict[int, dict[str, Any]]) -> None:
    for ranks in (1, 2):
        assert set(results[ranks]) == {f"{case}/{name}" for case in CASES for name in ENGINES}


def test_all_ranks_agree_on_a_checkpoint(results: dict[int, dict[str, Any]]) -> None:
    for ranks in (1, 2):
        got = results[ranks]["agreement/ddp"]
        assert got["read"] == ["step_00000001 {'rank': 0} [0.0, 1.0, 2.0] 2"] * ranks
        for what, kind, said in (
            ("damaged", "CheckpointError", "weights.safetensors has 0 bytes instead of"),
            ("unwritable", "StorageError", "expected to write it, got "),
        ):
            assert len(got[what]) == ranks and len(set(got[what])) == 1
            assert got[what][0].startswith(f"{kind} ") and said in got[what][0]


def test_every_rank_ends_with_the_exit_code_of_the_error() -> None:
    processes = start_ranks((WORKER, "broken"), ranks=2)
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [4, 4], errors
    assert "".join(errors).count("expected a finite loss, got spread=inf") == 1
    assert "expected a finite loss, got spread=inf" in errors[0]


def test_a_new_program_needs_no_compiler_and_causes_no_warning() -> None:
    """From its first import on: the other ranks of this file are forked from a process that has imported it all."""
    words = [sys.executable, "-W", "error", WORKER, "broken"]
    done = warm.run(words, env=environment(PATH=NO_COMPILER), capture_output=True, text=True, timeout=200)
    assert done.returncode == 4 and done.stdout == "", done.stderr
    assert "expected a finite loss, got spread=inf" in done.stderr and "compiler imported: False" in done.stderr
