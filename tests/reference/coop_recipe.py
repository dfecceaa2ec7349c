"""What `coop.npz` was computed from: weights drawn by name, pictures, and the cases of CoOp and Co-CoOp.

Shared by the recorder and the tests, so that no weights need to be stored. The CLIP is that of `recipe.py` with a
narrower embedding, so that Co-CoOp's network has four hidden units.
"""

from dataclasses import dataclass

from numpy.typing import NDArray

from tests.reference import recipe
from tests.reference.recipe import WIDTH, Array

EMBED = 64
SCALE = 100.0
"""exp(logit_scale) of OpenAI's CLIPs."""
CLIP_LAYOUT = {**recipe.CLIP_LAYOUT, "embed_dim": EMBED}
CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
STEPS, RATE, MOMENTUM, DECAY = 5, 0.02, 0.9, 5e-4
"""SGD of the recorded steps, all on the same pictures; the rate is ten times CoOp's, so that five steps show."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """method: coop or cocoop. words: initial contexts; empty draws `contexts` of them."""

    name: str
    method: str = "coop"
    contexts: int = 4
    words: str = ""
    shared: bool = True
    position: str = "end"


CASES = (
    Case(name="shared_end"),
    Case(name="own_middle", shared=False, position="middle", contexts=3),
    Case(name="shared_front", position="front"),
    Case(name="words_end", words="a photo of a"),
    Case(name="co_drawn", method="cocoop"),
    Case(name="co_words", method="cocoop", words="a photo of a"),
)


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the CLIP."""
    narrow = {"visual.proj": (WIDTH, EMBED), "text_projection": (WIDTH, EMBED)}
    return {**recipe.clip_shapes(), **narrow}


def new_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is trained, in the released names; contexts only if they are drawn."""
    shape = (case.contexts, WIDTH) if case.shared else (len(CLASSES), case.contexts, WIDTH)
    shapes: dict[str, tuple[int, ...]] = {} if case.words else {"ctx": shape}
    if case.method == "cocoop":
        shapes |= {
            "meta_net.linear1.weight": (EMBED // 16, EMBED),
            "meta_net.linear1.bias": (EMBED // 16,),
            "meta_net.linear2.weight": (WIDTH, EMBED // 16),
            "meta_net.linear2.bias": (WIDTH,),
        }
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Values by name."""
    return recipe.drawn(shapes)


def pictures() -> NDArray:  # type: ignore[type-arg]
    """Three pictures, uint8 [3 3 32 32]: the first frames of the clips of `recipe.py`."""
    return recipe.clips()[:, 0]
