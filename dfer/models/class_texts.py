"""Class logits from fixed class texts, with one or several texts a class.

Letters: B clips, K classes, P texts of all classes together, L tokens, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.models.prompts import TextEncoder, layout
from dfer.models.texts import class_prompts


class ClassTexts(nn.Module):
    """The texts of all classes as tokens; holds no weights. Texts longer than the text tower's context are cut, as in
    the released code of Exp-CLIP."""

    def __init__(self, emotions: Emotions, kind: str, *, context_length: int) -> None:
        super().__init__()
        prompts = class_prompts(emotions, kind)
        texts = [text for found in prompts for text in found]
        placed = layout(texts, num_contexts=0, position="end", context_length=context_length, truncate=True)
        counts = torch.tensor([len(found) for found in prompts])
        members = torch.repeat_interleave(torch.arange(len(prompts)), counts)
        self.tokens: Tensor
        self.eos: Tensor
        self.mean: Tensor
        self.register_buffer("tokens", placed.tokens, persistent=False)
        self.register_buffer("eos", placed.eos, persistent=False)
        # [P K]: the mean over the texts of each class.
        self.register_buffer("mean", F.one_hot(members, len(prompts)) / counts, persistent=False)

    def forward(self, towers: TextEncoder) -> Tensor:
        """Compute text features [P D], not normalised."""
        return towers.encode_prompts(towers.embed(self.tokens), self.eos)

    def logits(self, clips: Tensor, texts: Tensor) -> Tensor:
        """Compute cosine similarities [B K] in fp32 of clip features [B D] and text features [P D], neither of them
        normalised; a class's is the mean over its texts."""
        with torch.autocast(clips.device.type, enabled=False):
            cosine = F.normalize(clips.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
            return cosine @ self.mean
