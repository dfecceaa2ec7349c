"""Evaluate over any number of ranks: every clip is counted exactly once, or there is no result.

Letters: B clips of a batch, V views of a clip, N clips of the split, K classes. Each rank fills tables over the whole
split at the positions of its clips; one sum over the ranks at the end completes them and reveals every missing or
repeated clip. The views of a clip are averaged before counting.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfer.distributed import gather_objects, sum_over_ranks
from dfer.errors import DataError, NonFiniteLossError, message
from dfer.evaluation.counts import confusion
from dfer.evaluation.scores import Scores, scores
from dfer.recognition import PADDING, ClipBatch, FeatureBatch, Recognition, labels_of

LabelledBatch = ClipBatch | FeatureBatch
ANSWER = ""
"""Key of the method's main logits among its variants."""
SHOWN = 3
"""Most clips that a message names."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Labels and logits in the order of the split. labels: int64 [N] on the CPU; logits: float32 [N K] on the CPU."""

    labels: Tensor
    logits: Tensor

    @property
    def predicted(self) -> Tensor:
        """Class numbers int64 [N]; of equal logits the lowest class number wins, as in the confusion matrix."""
        return self.logits.argmax(dim=-1)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, float64 [N K]."""
        return self.logits.double().softmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of one pass over a split, the same on every rank. variants: scores of the method's other logits, by name.
    seconds: wall clock time of this rank's pass."""

    scores: Scores
    variants: dict[str, Scores]
    predictions: Predictions | None
    seconds: float


def evaluate(
    forward: Callable[[LabelledBatch], Recognition],
    batches: Iterable[LabelledBatch],
    *,
    num_classes: int,
    expected: int,
    views: int = 1,
    device: torch.device,
    keys: Sequence[str] | None = None,
    predictions: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run `forward` over this rank's batches and score the whole split. COLLECTIVE.

    Args:
        forward: returns logits [B K]; the caller has set the model to evaluation mode. Runs without gradients.
        batches: this rank's part; `index` is the position in the split (0..N-1) or PADDING. The V rows of a clip are
            consecutive.
        expected: N, clips of the split over all ranks.
        views: V, rows of a clip; their logits are averaged.
        device: device of the batches and the counts.
        keys: clip keys by position, for messages.
        predictions: also gather the logits, at the cost of a second sum of N x K numbers.
        between: called after every batch, on all ranks together; an error that it raises ends the evaluation.

    Raises:
        DataError: a clip is missing, repeated, or has an index or label outside the split; on every rank.
        ValueError: the rows of a batch are not whole clips of `views` rows.
        NonFiniteLossError: logits that are not finite; on every rank, naming the clips.
    """
    start = time.monotonic()
    tally = _Tally(num_classes=num_classes, expected=expected, device=device, keep_logits=predictions)
    with torch.no_grad():
        for batch in batches:
            checked = tally.checked(batch).to(device)
            tally.add(_Rows.of(checked, forward(checked), views=views))
            between()
    found, variants, answers = tally.finish(keys)
    return Evaluation(scores=found, variants=variants, predictions=answers, seconds=time.monotonic() - start)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """One row per clip. index, labels: int64 [B]; logits: float [B K]; variants: further logits [B K] by name."""

    index: Tensor
    labels: Tensor
    logits: Tensor
    variants: dict[str, Tensor]

    @classmethod
    def of(cls, batch: LabelledBatch, out: Recognition, *, views: int) -> "_Rows":
        """Average a batch's logits over the views of each clip."""
        variants = {name: _averaged(logits, views) for name, logits in out.variants.items()}
        index, labels = batch.index[::views], labels_of(batch)[::views]
        return cls(index=index, labels=labels, logits=_averaged(out.logits, views), variants=variants)


def _averaged(logits: Tensor, views: int) -> Tensor:
    """Average logits [(B V) K] over the views, to fp32 [B K]."""
    return logits.float().view(-1, views, logits.shape[-1]).mean(1) if views > 1 else logits.float()


class _Tally:
    """Counts of one rank. Tables have one extra row, into which padding is added, so that no step waits for the
    device."""

    def __init__(self, *, num_classes: int, expected: int, device: torch.device, keep_logits: bool) -> None:
        if expected < 1:
            raise DataError(
                message("evaluation", expected="at least one clip", got=str(expected), do="Check the test partitions.")
            )
        self.num_classes, self.expected = num_classes, expected
        self.matrices = {ANSWER: self._empty(device)}
        self.seen, self.broken, self.labels = torch.zeros(3, expected + 1, dtype=torch.int64, device=device)
        rows = expected + 1 if keep_logits else 0
        self.logits = torch.zeros(rows, num_classes, dtype=torch.float32, device=device)
        self.stray: str | None = None

    def _empty(self, device: torch.device) -> Tensor:
        return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=device)

    def checked(self, batch: LabelledBatch) -> LabelledBatch:
        """Turn rows outside the split into padding, and remember the first of them.

        An error raised here would leave the other ranks waiting; `finish` raises it on all of them.
        """
        inside = (batch.index >= 0) & (batch.index < self.expected)
        labels = labels_of(batch)
        inside &= (labels >= 0) & (labels < self.num_classes)
        bad = (batch.index != PADDING) & ~inside
        if not bool(bad.any()):
            return batch
        row = int(bad.nonzero()[0])
        self.stray = self.stray or f"index {int(batch.index[row])} with label {int(labels[row])}"
        return replace(batch, index=batch.index.masked_fill(bad, PADDING))

    def add(self, rows: _Rows) -> None:
        """Count the clips of one batch that are not padding."""
        counts = rows.index != PADDING
        slots = torch.where(counts, rows.index, self.expected)
        finite = torch.ones_like(counts)
        for name, logits in {ANSWER: rows.logits, **rows.variants}.items():
            if tuple(logits.shape) != (len(rows.index), self.num_classes):
                expected, got = f"logits [{len(rows.index)} {self.num_classes}]", str(list(logits.shape))
                raise DataError(message("evaluation", expected=expected, got=got, do="Match the model's classes."))
            matrix = self.matrices.setdefault(name, self._empty(logits.device))
            matrix += confusion(logits, labels=rows.labels, index=rows.index, num_classes=self.num_classes)
            finite &= logits.isfinite().all(dim=-1)
        self.seen.index_add_(0, slots, counts.long())
        self.broken.index_add_(0, slots, (counts & ~finite).long())
        if len(self.logits):
            self.labels.index_add_(0, slots, torch.where(counts, rows.labels, 0))
            self.logits.index_add_(0, slots, torch.where(counts[:, None], rows.logits, 0.0))

    def finish(self, keys: Sequence[str] | None) -> tuple[Scores, dict[str, Scores], Predictions | None]:
        """Sum over the ranks, check that every clip was counted once, and score. COLLECTIVE."""
        n, k = self.expected, self.num_classes
        # A rank without clips has no variants, so the names are gathered.
        names = sorted({name for known in gather_objects(sorted(self.matrices)) for name in known})
        device = self.seen.device
        strays = torch.tensor([self.stray is not None], dtype=torch.int64, device=device)
        counts = [self.matrices.get(name, self._empty(device)).flatten() for name in names]
        whole = sum_over_ranks(torch.cat([self.seen[:n], self.broken[:n], self.labels[:n], strays, *counts])).cpu()
        seen, broken, labels, num_strays, *matrices = torch.split(whole, [n, n, n, 1, *[k * k] * len(names)])
        self._refuse_strays(int(num_strays))
        _refuse_wrong_totals(seen, keys)
        _refuse_broken(broken, keys)
        found = {name: scores(matrix.view(k, k).tolist()) for name, matrix in zip(names, matrices)}
        answer = found.pop(ANSWER)
        if not len(self.logits):
            return answer, found, None
        return answer, found, Predictions(labels=labels.clone(), logits=sum_over_ranks(self.logits[:n]).cpu())

    def _refuse_strays(self, num_strays: int) -> None:
        if not num_strays:
            return
        first = next(text for text in gather_objects(self.stray) if text is not None)
        expected = f"index 0..{self.expected - 1} and label 0..{self.num_classes - 1}"
        raise DataError(
            message("evaluation", expected=expected, got=first, do="Check that shards and model share their classes.")
        )


def _refuse_wrong_totals(seen: Tensor, keys: Sequence[str] | None) -> None:
    if bool((seen == 1).all()):
        return
    missing, twice = (seen == 0).nonzero().flatten().tolist(), (seen > 1).nonzero().flatten().tolist()
    found = {"missing": missing, "repeated": twice}
    wrong = [f"{len(ids)} {what} ({_names(ids, keys)})" for what, ids in found.items() if ids]
    raise DataError(
        message(
            "evaluation",
            expected=f"{len(seen)} clips, each once",
            got=f"{int(seen.sum())} clips: {', '.join(wrong)}",
            do="No score is given; run `dfer-shards verify` and check that all ranks read the same shards.",
        )
    )


def _refuse_broken(broken: Tensor, keys: Sequence[str] | None) -> None:
    ids = broken.nonzero().flatten().tolist()
    if ids:
        got = f"{len(ids)} of {len(broken)} clips with NaN or infinity ({_names(ids, keys)})"
        do = "No score is given; evaluate an earlier checkpoint or use precision fp32."
        raise NonFiniteLossError(message("evaluation", expected="finite logits", got=got, do=do))


def _names(ids: Sequence[int], keys: Sequence[str] | None) -> str:
    shown = [str(i) if keys is None else keys[i] for i in ids[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(ids) > SHOWN else "")
