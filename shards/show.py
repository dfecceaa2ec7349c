"""`dfer-shards show`: the contents of a shard folder, as a table with the published counts."""

from collections.abc import Mapping, Sequence

from dfer.store.format import Manifest, data_name
from shards.build import listed
from shards.totals import TOTALS

ABBREVIATED = 9
SHOWN_FOLDS = 10


def describe(manifest: Manifest) -> str:
    """Make the text that `show` prints: head, counts per partition and class, clips that were left out."""
    frames = sum(shard.frames for shard in manifest.shards)
    size = sum(shard.bytes for shard in manifest.shards)
    clips = sum(shard.clips for shard in manifest.shards)
    labelled = sum(map(sum, manifest.counts.values()))
    settings = manifest.frames
    name = data_name(manifest.dataset, generated=manifest.generated)
    lines = [
        f"{name}: {clips} clips, "
        f"{frames} frames, {_bytes(size)} in {len(manifest.shards)} shards, built by {manifest.builder}",
        f"frames: {manifest.media.upper()}, {settings.kept} kept as they were, {settings.encoded} encoded "
        f"(longest side {settings.max_side} px, quality {settings.quality})",
        "options: " + ", ".join(f"{key} {value}" for key, value in sorted(manifest.options.items())),
        *_protocols(manifest),
        *_notes(manifest),
        "",
        count_table(manifest.dataset, manifest.classes, manifest.counts, generated=bool(manifest.generated)),
    ]
    if labelled < clips:
        lines += ["", f"clips without a label: {clips - labelled}"]
    if manifest.excluded:
        lines += ["", f"clips left out: {len(manifest.excluded)}", listed(manifest.excluded)]
    return "\n".join(lines)


def _protocols(manifest: Manifest) -> list[str]:
    """Make lines per protocol: its folds, the test set of each, its source; how training and test overlap."""
    lines = []
    for name, protocol in sorted(manifest.protocols.items()):
        tests = [fold.test.names for _, fold in sorted(protocol.folds.items(), key=lambda item: int(item[0]))]
        shown = [" and ".join(names) for names in tests[:SHOWN_FOLDS]] + ["..."] * (len(tests) > SHOWN_FOLDS)
        folds = "1 fold" if len(tests) == 1 else f"{len(tests)} folds"
        lines.append(f"protocol {name}: {folds}, testing on {', '.join(shown)} ({protocol.source})")
        if protocol.overlap is not None:
            lines.append(f"  {protocol.overlap.words(len(tests))}")
    return lines or ["protocols: none, these shards cannot be split"]


def _notes(manifest: Manifest) -> list[str]:
    faces = manifest.faces
    notes = [f"licence: {manifest.licence}"] if manifest.licence else []
    if faces is not None:
        turned = ", eyes level" if faces.aligned else ""
        notes.append(f"faces: found by {faces.finder}, margin {faces.margin:g}{turned}")
    return notes


def count_table(
    dataset: str, classes: Sequence[str], counts: Mapping[str, Sequence[int]], *, generated: bool = False
) -> str:
    """Make a table of clips per partition and class; a published number follows after a slash if it differs.

    The last line says how many numbers differ. generated: the faces are generated, so no published number applies.
    """
    known = {} if generated else TOTALS.get(dataset, {})
    rows = {partition: _with_sum(row) for partition, row in sorted(counts.items())}
    expected = {partition: _with_sum(row) for partition, row in known.items()}
    for table in (rows, expected):
        if table:
            table["all"] = tuple(map(sum, zip(*table.values(), strict=True)))
    cells = [["", *(name[:ABBREVIATED] for name in classes), "all"]]
    cells += [[name, *map(_cell, row, expected.get(name, row))] for name, row in rows.items()]
    absent = [name for name in expected if name not in rows]
    lines = [_aligned(row, [max(map(len, column)) for column in zip(*cells, strict=True)]) for row in cells]
    verdict = "generated faces: no published counts to compare with" if generated else _verdict(rows, expected, absent)
    return "\n".join([*lines, verdict])


def _verdict(rows: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], absent: Sequence[str]) -> str:
    if not expected:
        return "no published counts known for this data set"
    differ = [name for name, row in rows.items() if tuple(row) != tuple(expected.get(name, row))]
    if not differ and not absent:
        return "all counts as published"
    cells = sum(
        a != b for name in differ for a, b in zip(rows[name][:-1], expected[name][:-1], strict=True) if name != "all"
    )
    text = f"found/published; class counts that differ: {cells}"
    return text + (f"; partitions not here: {', '.join(absent)}" if absent else "")


def _with_sum(row: Sequence[int]) -> tuple[int, ...]:
    return (*row, sum(row))


def _cell(count: int, known: int) -> str:
    return str(count) if count == known else f"{count}/{known}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
