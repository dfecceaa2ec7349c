"""Five classes of a user's own, with texts from a file and folds of lists of keys, from shards to a table."""

from dataclasses import replace
from pathlib import Path

import pytest

from dfer.data.clips import ClipSet, emotions_for
from dfer.emotions import emotions_of
from dfer.store.shards import Store
from shards.build import build
from shards.shard import BuildOptions
from shards.sources import dfew as dfew_source
from shards.sources.clips import RawFold, RawProtocol, RawSet, RawSubset
from shards.sources.generated import mark_generated
from tests.integration.commands import Capture, finish, here, refused, result

pytestmark = pytest.mark.integration

OWN = {
    "delighted": ("happiness",),
    "low": ("sadness", "fear"),
    "wide awake": ("surprise",),
    "cross": ("anger", "disgust"),
    "calm": ("neutral",),
}
TEXTS = {
    "calm": "a face at rest.",
    "cross": "a frown and a tight mouth.",
    "delighted": "a broad smile and raised cheeks.",
    "low": "a downturned mouth and drooping eyelids.",
    "wide awake": "wide eyes and an open mouth.",
}


def relabelled(root: Path) -> RawSet:
    """The generated faces of DFEW's layout under other classes, in thirds of all clips as folds; two have no label."""
    raw = mark_generated(dfew_source.read(root), root)
    own, names = emotions_of(list(OWN)), raw.emotions.names
    number = {names.index(word): own.index(name) for name, words in OWN.items() for word in words}
    clips = tuple(
        replace(clip, label=None if position < 2 else number[clip.label or 0])
        for position, clip in enumerate(raw.clips)
    )
    keys = [clip.key for clip in clips]
    folds = tuple(
        RawFold(
            train=RawSubset(keys=tuple(key for position, key in enumerate(keys) if position % 3 != third)),
            test=RawSubset(keys=tuple(keys[third::3])),
        )
        for third in range(3)
    )
    protocols = {"thirds": RawProtocol(source="this test", folds=folds)}
    return replace(raw, dataset="moods", emotions=own, clips=clips, protocols=protocols)


@pytest.fixture(scope="module")
def moods(dfew: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ and texts.yaml."""
    folder = tmp_path_factory.mktemp("moods")
    build(relabelled(dfew / "raw"), str(folder / "shards"), BuildOptions(media="png"), progress=False)
    (folder / "texts.yaml").write_text("".join(f"{name}: {text}\n" for name, text in TEXTS.items()))
    return folder


def arguments(tiny: Path, moods: Path, run: Path) -> tuple[object, ...]:
    return (
        tiny,
        f"data.shards={moods / 'shards'}",
        "data.protocol=thirds",
        f"model.text={moods / 'texts.yaml'}",
        f"run={run}",
        "epochs=1",
    )


def test_five_classes_of_ones_own_train_evaluate_and_predict(
    capsys: Capture, tiny: Path, dfew: Path, moods: Path, tmp_path: Path
) -> None:
    run, words = tmp_path / "run", arguments(tiny, moods, tmp_path / "run")
    described = here(capsys, "train", *words, "fold=2", "--dry-run").stdout
    assert "fold 2 of 3: trains on protocols/thirds.2.train.txt" in described
    assert "; 1 left out, without a label or of another class" in described
    finish("train", *words, "fold=2")
    trained = result(run)
    assert trained["classes"] == list(OWN) and trained["num_folds"] == 3
    assert trained["test_partitions"] == ["protocols/thirds.2.test.txt"]
    assert trained["clips"] == sum(map(sum, trained["confusion"])) == len(range(1, 35, 3)) - 1
    assert here(capsys, "evaluate", run).returncode == 0
    assert result(run) == trained
    clip = next(path for path in sorted((dfew / "raw").rglob("*")) if any(path.glob("*.jpg")))
    assert here(capsys, "predict", run, clip, "--csv", tmp_path / "p.csv").returncode == 0
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == f"clip,predicted,{','.join(OWN)}"
    assert here(capsys, "report", run).returncode == 0
    page = (run / "report" / "index.html").read_text()
    assert all(name in page for name in OWN)

    # The texts are part of what was trained: a file that says something else is refused, not used in silence.
    texts = moods / "texts.yaml"
    before = texts.read_text()
    try:
        texts.write_text(before.replace("a face at rest.", "a smooth face."))
        line = refused(here(capsys, "evaluate", run), 5, "model.text: expected 'a face at rest.', got 'a smooth face.'")
        assert "Restore the texts that it was trained with" in line
    finally:
        texts.write_text(before)


def test_a_configuration_selects_and_orders_some_of_the_classes(
    capsys: Capture, tiny: Path, moods: Path, tmp_path: Path
) -> None:
    run, words = tmp_path / "run", arguments(tiny, moods, tmp_path / "run")
    assert here(capsys, "crossval", *words, "data.classes=[calm, delighted, cross]").returncode == 0
    store = Store(str(moods / "shards"))
    chosen = emotions_for(["calm", "delighted", "cross"], store.manifest)
    clips = ClipSet.open(store, store.manifest.partitions(), emotions=chosen)
    results = [result(run / f"fold_{fold}") for fold in (1, 2, 3)]
    assert [found["classes"] for found in results] == [["calm", "delighted", "cross"]] * 3
    assert [sum(found["count"][k] for found in results) for k in range(3)] == clips.counts.tolist()


def test_what_does_not_fit_own_classes_is_refused_with_what_to_do(
    capsys: Capture, tiny: Path, moods: Path, tmp_path: Path
) -> None:
    words = arguments(tiny, moods, tmp_path / "run")
    texts = tmp_path / "short.yaml"
    texts.write_text("calm: a face at rest.\ncross: a frown.\n")
    refused(
        here(capsys, "train", *words, f"model.text={texts}"), 2, "got none for delighted, low, wide awake", "Add a line"
    )
    refused(
        here(capsys, "train", *words, "model.text=class_descriptor"),
        2,
        "text=class_descriptor: expected a text for every class, got none for delighted",
        "Give `text` the path of",
    )
    refused(
        here(capsys, "train", *words, "data.classes=[calm, sleepy]"), 2, "got 5 without sleepy", "data.classes, by name"
    )
    refused(
        here(capsys, "train", *words, "data.protocol=published"),
        2,
        "a protocol of the shards (thirds), got 'published'",
    )
    assert not (tmp_path / "run").exists()
