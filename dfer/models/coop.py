"""CoOp (Zhou et al., IJCV 2022): learned contexts in the class prompts, both towers of CLIP frozen.

CoOp classifies pictures; a clip is here represented by its mean frame feature.

Letters: B clips, T frames, K classes, N contexts, W width of a token, D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfer.config import ConfigProblem
from dfer.emotions import Emotions
from dfer.errors import message
from dfer.models.config import CoOpConfig
from dfer.models.frozen import FrozenTowers, check_size, normalisation_words
from dfer.models.losses import cross_entropy
from dfer.models.prompts import PromptLearner, layout
from dfer.models.texts import class_texts
from dfer.models.towers import FEATURE, tokenize
from dfer.recognition import ClipBatch, FeatureBatch, Group, Progress, Recognition, Recognizer


class CoOp(Recognizer):
    """Class logits: cosine similarity of the mean frame feature and the features of the learned prompts."""

    def __init__(self, config: CoOpConfig, *, towers: FrozenTowers, emotions: Emotions) -> None:
        super().__init__()
        self.config, self.towers = config, towers
        initial = word_embeddings(config.context_words, towers)
        placed = layout(
            class_texts(emotions, config.text),
            num_contexts=config.num_contexts if initial is None else len(initial),
            position=config.context_position,
            context_length=towers.context_length,
            period_last=True,
        )
        self.prompts = PromptLearner(placed, width=towers.text_width, shared=config.shared_contexts, initial=initial)

    @property
    def normalisation(self) -> str:
        """CLIP's own normalisation, or none."""
        return normalisation_words(self.config.clip_normalisation)

    @property
    def origin(self) -> str | None:
        """Origin of the towers' weights."""
        return self.towers.origin

    def forward(self, batch: ClipBatch | FeatureBatch) -> Recognition:
        """Compute logits [B K] of frames uint8 [B T C H W], or of features `frames` float [B T D]."""
        if isinstance(batch, ClipBatch):
            check_size(batch.frames, self.towers.image_size)
        clips = self.towers.features(batch, normalise=self.config.clip_normalisation).mean(dim=1)
        texts = self.prompts(self.towers)
        with torch.autocast(clips.device.type, enabled=False):
            cosine = F.normalize(clips.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        return Recognition(logits=cosine / self.config.temperature)

    def encode(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Compute the frozen tower's features of a batch: `frames`, float [B T D], not normalised."""
        return {FEATURE: self.towers.features(batch, normalise=self.config.clip_normalisation)}

    def tower_weights(self) -> frozenset[str]:
        """Names of the image tower's weights."""
        return frozenset(name for name in self.state_dict() if name.startswith("towers.visual."))

    def loss(self, out: Recognition, batch: ClipBatch | FeatureBatch, progress: Progress) -> dict[str, Tensor]:
        """Cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return one group, `prompts`."""
        return {"prompts": Group(params=list(self.prompts.parameters()))}

    def class_parameters(self) -> frozenset[str]:
        """The contexts [K N W], unless all classes share one set."""
        return frozenset(() if self.config.shared_contexts else {"prompts.contexts"})


def word_embeddings(words: str | None, towers: FrozenTowers) -> Tensor | None:
    """Return the token embeddings [N W] of given words, from which contexts start; None for random contexts.

    Raises:
        ConfigProblem: a word is more than one token, so that the number of contexts would not be that of the words.
    """
    if words is None:
        return None
    tokens = tokenize([words])[0]
    if len(tokens) != len(words.split()):
        expected, got = "words of one token each", f"{len(tokens)} tokens for {words!r}"
        raise ConfigProblem(message("context_words", expected=expected, got=got, do="CoOp's are `a photo of a`."))
    return towers.embed(torch.tensor(tokens))
