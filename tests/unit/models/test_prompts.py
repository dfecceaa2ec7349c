"""Where contexts, text and end stand in a prompt."""

from typing import get_args

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfer.config import ConfigProblem
from dfer.emotions import label_set
from dfer.models.build import build
from dfer.models.config import ContextPosition
from dfer.models.prompts import layout
from dfer.models.texts import class_texts
from tests.unit.models.tiny import tiny

TOKENIZER = open_clip.SimpleTokenizer()
TEXTS = class_texts(label_set("mafw11"), "class_descriptor")
WORDS = st.lists(
    st.sampled_from(["anger", "raised eyebrows,", "helplessness.", "an expression of"]), min_size=1, max_size=5
)


@given(
    texts=st.lists(WORDS.map(" ".join), min_size=1, max_size=4),
    contexts=st.integers(0, 16),
    position=st.sampled_from(get_args(ContextPosition)),
)
def test_taking_the_contexts_out_leaves_clips_own_tokens(texts: list[str], contexts: int, position: str) -> None:
    placed = layout(texts, num_contexts=contexts, position=position, context_length=77)  # type: ignore[arg-type]
    plain = TOKENIZER(texts)
    for row in range(len(texts)):
        slots, eos = placed.slots[row].tolist(), int(placed.eos[row])
        kept = [i for i in range(eos + 1) if i not in slots]
        length = len(kept)
        assert placed.tokens[row, kept].tolist() == plain[row, :length].tolist()
        assert int(plain[row].argmax()) == length - 1
        assert slots == sorted(set(slots)) and len(slots) == contexts and all(0 < slot < eos for slot in slots)
        assert not placed.tokens[row, eos + 1 :].any()
    assert placed.tokens.shape[1] == int(placed.eos.max()) + 1


@pytest.mark.parametrize(
    ("position", "expected"),
    [("end", [1, 2, 3, 4, 5]), ("front", [4, 5, 6, 7, 8]), ("middle", [1, 2, 6, 7, 8])],
)
def test_positions_by_hand(position: ContextPosition, expected: list[int]) -> None:
    """`sad face.` is three tokens; of five contexts two stand before it in the middle."""
    placed = layout(["sad face."], num_contexts=5, position=position, context_length=77)
    assert placed.slots.tolist() == [expected]
    assert placed.eos.tolist() == [9]


@pytest.mark.parametrize(
    ("position", "expected"),
    [("end", [1, 2, 3, 4, 5]), ("front", [3, 4, 5, 6, 7]), ("middle", [1, 2, 5, 6, 7])],
)
def test_a_period_may_stay_behind_the_contexts(position: ContextPosition, expected: list[int]) -> None:
    placed = layout(["sad face."], num_contexts=5, position=position, context_length=77, period_last=True)
    period = TOKENIZER.encode(".")[0]
    assert placed.slots.tolist() == [expected] and placed.tokens[0, 8] == period and placed.eos.tolist() == [9]
    bare = layout(["sad face"], num_contexts=5, position=position, context_length=77, period_last=True)
    assert bare.eos.tolist() == [8]


def test_truncation_is_clip_s() -> None:
    long = "a very long face " * 30
    placed = layout([long, "sad."], num_contexts=0, position="end", context_length=77, truncate=True)
    assert placed.tokens.tolist() == TOKENIZER([long, "sad."], context_length=77).tolist()
    assert placed.eos.tolist() == [76, 3]


def test_too_long_a_prompt_names_the_number_that_fits() -> None:
    with pytest.raises(ConfigProblem) as caught:
        layout(TEXTS, num_contexts=60, position="end", context_length=77)
    fits = int(str(caught.value).split("Use at most ")[1].split()[0])
    assert "num_contexts: 60 contexts make a prompt of" in str(caught.value)
    placed = layout(TEXTS, num_contexts=fits, position="end", context_length=77)
    assert placed.tokens.shape[1] == 77


@pytest.mark.parametrize("position", get_args(ContextPosition))
def test_cutting_the_prompts_changes_no_feature(position: ContextPosition) -> None:
    """Nothing behind the end token reaches it: all 77 positions give what the cut prompts give."""
    model = build(tiny(context_position=position), label_set("basic7"), num_frames=4, seed=0)
    cut = model.encode_text()
    prompts = model.prompts
    padding = torch.randint(1, 49000, (7, 77 - prompts.tokens.shape[1]))
    prompts.tokens = torch.cat([prompts.tokens, padding], dim=1)
    torch.testing.assert_close(model.encode_text(), cut, atol=1e-6, rtol=1e-5)
