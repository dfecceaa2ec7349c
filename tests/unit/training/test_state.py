import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.errors import CheckpointError
from dfer.training.state import TrainingState, check_names, check_shapes


@given(per_epoch=st.integers(1, 9), steps=st.integers(0, 60))
def test_position_counts_epochs_and_survives_json(per_epoch: int, steps: int) -> None:
    state = TrainingState()
    for _ in range(steps):
        state = state.after_step(steps_per_epoch=per_epoch)
    assert (state.epoch, state.step, state.global_step) == (steps // per_epoch, steps % per_epoch, steps)
    assert TrainingState.from_json(state.to_json(), where="here", steps_per_epoch=per_epoch) == state


def test_another_number_of_steps_is_refused() -> None:
    plain = TrainingState(epoch=2, step=1, global_step=21).to_json()
    with pytest.raises(CheckpointError) as caught:
        TrainingState.from_json(plain, where="run/step_21", steps_per_epoch=7)
    assert str(caught.value) == (
        "run/step_21: expected a position in epochs of 7 steps, got epoch 2, step 1, global step 21. "
        "Use the same data and batch, or a new run."
    )
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("plain", [None, {}, {"epoch": "1"}, {"where": 3}])
def test_foreign_state_is_refused_or_the_start(plain: object) -> None:
    if plain == {}:
        assert TrainingState.from_json(plain, where="x", steps_per_epoch=1) == TrainingState()
        return
    with pytest.raises(CheckpointError, match="x: no position of a training run in its state"):
        TrainingState.from_json(plain, where="x", steps_per_epoch=1)


def test_names_list_what_is_missing_and_what_is_unexpected() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_names("weights", got=["a", "c", "d"], expected=["a", *(f"b{i}" for i in range(7))])
    assert str(caught.value) == (
        "checkpoint weights: expected the names of this model, got missing b0, b1, b2, b3, b4 and 2 more; "
        "unexpected c, d. Use the configuration the checkpoint was trained with."
    )


def test_shapes_name_the_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"got head \(2, 3\) for \(4, 3\)\. Use the configuration"):
        check_shapes("weights", got={"head": torch.zeros(2, 3)}, expected={"head": torch.Size((4, 3))})
