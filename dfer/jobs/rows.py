"""The rows of published tables with the results of our runs; `make configs` generates `configs/README.md` from them.

A row is a join of a method and a set. If its recipe differs from that join, the file SET/METHOD.yaml replaces the join.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dfer.choices import LEAKS_LABEL
from dfer.config_files import CONFIGS
from dfer.emotions import MAFW11
from dfer.evaluation.results import Published
from dfer.report import exp_clip


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Results of our run of a row. scores: UAR / WAR in percent, number of seeds, deviation. hours: wall-clock time."""

    scores: str
    hardware: str
    hours: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A configuration and its numbers. configs: the CONFIG arguments of a command, in any order. protocol: data set and
    folds."""

    configs: tuple[str, ...]
    protocol: str
    published: Published | None = None
    ours: Ours | None = None

    @property
    def dataset(self) -> str:
        """Name of the set, empty for a file that has its own data: `ckplus48` of `ckplus48/vgg19_subjects` too."""
        return self._names[0]

    @property
    def method(self) -> str:
        """Name of the method, or of the file."""
        return self._names[1]

    @property
    def _names(self) -> tuple[str, str]:
        if len(self.configs) == 1:
            folder, _, name = self.configs[0].rpartition("/")
            return folder, name
        method, dataset = (name.rpartition("/")[2] for name in sorted(self.configs))
        return dataset, method

    @property
    def leaks_label(self) -> bool:
        """Whether the model is given the true label of the test clips."""
        return self.method in LEAKING

    @property
    def warning(self) -> str:
        """What must stand beside every number of the row: LEAKS_LABEL, or nothing."""
        return LEAKS_LABEL if self.leaks_label else ""

    @property
    def note(self) -> str:
        """What a reader must know beside the published numbers, in short words."""
        return self.published.note if self.published else ""

    def line(self) -> str:
        """Format the row in Markdown."""
        links = " ".join(f"[{name}]({name}.yaml)" for name in self.configs)
        if own := own_file(self.configs):
            links += f" ([differs]({own}.yaml))"
        published = "; ".join(filter(None, (self.published.text, self.note))) if self.published else "none"
        protocol = ", ".join(filter(None, (self.protocol, self.warning)))
        ours = self.ours or Ours(scores="pending", hardware="", hours="", commit="")
        cells = (links, protocol, published, ours.scores, ours.hardware, ours.hours, ours.commit)
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def own_file(names: Sequence[str]) -> str | None:
    """Return the name SET/METHOD of the file that replaces the join of a method and a set; None if there is no such
    file, so that the join itself is used."""
    methods, sets = ([n.removeprefix(kind) for n in names if n.startswith(kind)] for kind in ("methods/", "sets/"))
    if len(names) != 2 or not methods or not sets:
        return None
    name = f"{sets[0]}/{methods[0]}"
    return name if (CONFIGS / f"{name}.yaml").is_file() else None


LEAKING = ("clivp_fer_true_label",)
"""Methods whose model is given the true label of the test clips."""
SETS = {"dfew": "DFEW, five folds", "ferv39k": "FERV39k, its one split", "mafw": "MAFW, five folds"}
STILLS = {
    "raf_db": "RAF-DB, its one split",
    "affectnet7": "AffectNet without contempt, tested on its validation part",
    "affectnet8": "AffectNet, tested on its validation part",
    "fer2013": "FER2013, PrivateTest",
    "ferplus": "FERPlus, its test part",
    "ckplus": "CK+, ten folds that share nobody",
    "ckplus48": "CK+48, ten folds that share nobody",
    "kmu_fed": "KMU-FED, ten folds that share nobody",
    "afew": "AFEW, tested on its validation part",
}
"""Data sets of stills, and AFEW."""
Scores = tuple[float, float]
"""UAR and WAR in percent."""
Scores3 = tuple[Scores, Scores, Scores]
"""Those on SETS, in that order."""

DFER_CLIP: dict[str, Scores3] = {
    "dfer_clip": ((59.61, 71.25), (41.27, 51.65), (39.89, 52.55)),
    "dfer_clip_no_temporal_4ctx": ((56.91, 69.01), (40.26, 50.96), (38.03, 50.62)),
    "dfer_clip_no_temporal_8ctx": ((57.39, 69.00), (40.64, 50.92), (38.51, 50.91)),
    "dfer_clip_no_temporal_16ctx": ((57.32, 68.96), (40.22, 50.64), (37.98, 50.40)),
    "dfer_clip_depth2": ((58.87, 70.92), (40.41, 51.08), (39.13, 52.10)),
    "dfer_clip_depth3": ((58.64, 70.80), (40.35, 50.98), (38.90, 51.86)),
    "photo_no_temporal": ((56.21, 68.44), (39.44, 49.94), (37.91, 50.87)),
    "expression_no_temporal": ((56.16, 68.73), (39.28, 50.41), (37.71, 51.08)),
    "class_name_no_temporal": ((57.37, 68.86), (40.42, 50.50), (38.01, 50.81)),
    "class_name_temporal": ((58.28, 70.29), (40.60, 51.18), (39.64, 51.21)),
    "linear_probe": ((45.46, 57.40), (32.47, 43.72), (30.74, 42.95)),
    "fine_tune": ((55.70, 68.41), (39.64, 50.77), (37.53, 50.48)),
    "fine_tune_temporal": ((58.28, 70.27), (40.55, 51.22), (38.39, 50.92)),
    "coop": ((44.98, 56.68), (31.72, 42.55), (30.79, 42.77)),
    "cocoop": ((46.80, 57.52), (32.91, 44.25), (30.81, 43.23)),
    "zero_shot_farl": ((23.14, 31.54), (21.67, 25.65), (14.18, 11.78)),
}
"""Methods of the DFER-CLIP paper's tables (Zhao & Patras, BMVC 2023), with their numbers on SETS, in that order."""

UNRELEASED = tuple(name for name in DFER_CLIP if name.endswith("_no_temporal") or "_no_temporal_" in name)
"""Rows of that table without a temporal model: the released code has no switch for it."""
ZERO_SHOT: Scores3 = ((23.34, 20.07), (20.99, 17.09), (18.42, 19.16))
ZERO_SHOT_KINDS = ("", "_expression", "_face", "_ensemble_5", "_ensemble_10")
"""Zero-shot CLIP in the same table. The paper does not give its prompt: its numbers stand beside every kind of ours."""

OURS = ("coop_own", "cocoop_own", "dk_clip_released")
"""Methods with the recipe of their own authors' code, for which no numbers on these sets are published: CoOp's and
Co-CoOp's are on other data, DK-CLIP's numbers were made with earlier code."""
DK_CLIP: dict[str, Scores3] = {"dk_clip": ((64.95, 75.41), (41.84, 52.37), (43.01, 56.56))}
"""Means over folds of the DK-CLIP paper's tables (Li et al., ACM MM 2024), on SETS. UAR is the mean of two ranks'; the
weights are those of the best epoch on the test split (docs/methods/dk_clip.md)."""
DK_CLIP_RECALL: dict[str, tuple[float, ...]] = {
    "dfew": (94.61, 76.19, 75.06, 78.65, 63.61, 23.60, 42.93),
    "ferv39k": (74.93, 60.94, 60.31, 48.16, 22.98, 10.50, 15.04),
    "mafw": (87.03, 70.61, 64.77, 61.87, 54.40, 35.51, 40.15, 6.81, 40.17, 5.72, 6.03),
}
"""Recalls of the same rows in percent, in the order of MAFW11, means of two ranks' as its UAR is. On MAFW the means of
those that are printed of each fold."""
DK_CLIP_LAST: dict[str, Scores] = {"dfew": (63.85, 74.61), "ferv39k": (42.19, 50.22), "mafw": (39.82, 52.13)}
"""The same at the last epoch, from the logs of its release."""
CLIVP_FER = "CLIVP-FER (Saadi et al.)"
CLAIMED = f"{CLIVP_FER}, a claim of the paper: its code has no such set"
CNN = "github WuJie1010/Facial-Expression-Recognition.Pytorch"
ACCURACY: dict[tuple[str, str], tuple[str, float | None, str]] = {
    ("clivp_fer", "kmu_fed"): ("KMU-FED, ten folds that share nobody", None, ""),
    ("clivp_fer_mode0", "kmu_fed"): ("KMU-FED, ten folds that share nobody", None, ""),
    ("clivp_fer_true_label", "kmu_fed"): ("KMU-FED, ten folds by position", 97.364, CLIVP_FER),
    ("clivp_fer_true_label", "fer2013"): ("FER2013, private test", 99.01, CLAIMED),
    ("clivp_fer_true_label", "raf_db"): ("RAF-DB, its one split", 99.22, CLAIMED),
    ("vgg19", "fer2013"): ("FER2013, private test", 73.112, CNN),
    ("resnet18", "fer2013"): ("FER2013, private test", 72.973, CNN),
    ("vgg19", "ckplus48"): ("CK+48, ten folds by position, pooled", 94.646, CNN),
    ("resnet18", "ckplus48"): ("CK+48, ten folds by position, pooled", 94.040, CNN),
}
"""Rows that are published with accuracy alone, by method and set: protocol, accuracy in percent and its source."""
PUBLIC = tuple(
    Row(
        configs=(f"fer2013/{net}_public",),
        protocol="FER2013, public test",
        published=Published(war=war, source=CNN, selection="best_on_test", dataset="fer2013"),
    )
    for net, war in (("vgg19", 71.496), ("resnet18", 71.190))
)
SUBJECTS = tuple(
    Row(configs=(f"ckplus48/{net}_subjects",), protocol="CK+48, ten folds that share nobody")
    for net in ("vgg19", "resnet18")
)

DEMO = (
    Row(
        configs=("demo",),
        protocol="generated faces, five folds",
        ours=Ours(
            scores="96.26 / 95.82 on AMD EPYC, 92.47 / 91.63 on Intel Xeon "
            "(1 seed; std over folds 1.53 / 1.67, 5.22 / 5.48)",
            hardware="2 CPU cores",
            hours="0.1",
            commit="c5944fd",
        ),
    ),
    Row(
        configs=("demo_no_temporal",),
        protocol="the same without the temporal model",
        ours=Ours(
            scores="66.82 / 71.43 on AMD EPYC, 64.70 / 69.08 on Intel Xeon "
            "(1 seed; std over folds 3.61 / 3.21, 3.25 / 3.01)",
            hardware="2 CPU cores",
            hours="0.1",
            commit="c5944fd",
        ),
    ),
)


def note_of(method: str, dataset: str) -> str:
    """Say what a reader must know beside the published numbers of a method on a set; empty for most."""
    if (method, dataset) == ("clivp_fer_true_label", "kmu_fed"):
        return "of 1,104 face crops; ours are of 1,100 whole pictures"
    if method in DK_CLIP:
        uar, war = DK_CLIP_LAST[dataset]
        return f"UAR and recalls are means over two ranks; best test epoch, the last one has {uar:.2f} / {war:.2f}"
    if method in UNRELEASED:
        return "cannot be run from the release; frames averaged"
    if method == "linear_probe":
        return "its normalisation of frames is not published; ours is CLIP's, unlike the other rows'"
    if method.startswith("zero_shot"):
        return "its prompt is not published"
    return ""


def of_paper(table: Mapping[str, Scores3], source: str) -> tuple[Row, ...]:
    """Make the rows of a paper's table, grouped by set."""
    found = []
    for place, (name, protocol) in enumerate(SETS.items()):
        for method, scores in table.items():
            uar, war = scores[place]
            note = note_of(method, name)
            recall = dict(zip(MAFW11, DK_CLIP_RECALL[name])) if method in DK_CLIP else {}
            selection: Literal["none", "best_on_test"] = "none" if method.startswith("zero_shot") else "best_on_test"
            published = Published(
                uar=uar, war=war, source=source, selection=selection, note=note, recall=recall, dataset=name
            )
            configs = (f"methods/{method}", f"sets/{name}")
            found.append(Row(configs=configs, protocol=protocol, published=published))
    return tuple(found)


PROBES = tuple(Row(configs=("methods/linear_probe", f"sets/{name}"), protocol=text) for name, text in STILLS.items())
"""One row a set of stills without published numbers."""


def unpublished(methods: Sequence[str]) -> tuple[Row, ...]:
    """Make rows without published numbers, grouped by set."""
    found = [(f"methods/{method}", name) for name in SETS for method in methods]
    return tuple(Row(configs=(method, f"sets/{name}"), protocol=SETS[name]) for method, name in found)


def of_accuracy(table: Mapping[tuple[str, str], tuple[str, float | None, str]]) -> tuple[Row, ...]:
    """Make the rows of a table of accuracies, of which the papers chose the best epoch on the test clips."""
    return tuple(
        Row(
            configs=(f"methods/{method}", f"sets/{name}"),
            protocol=protocol,
            published=None
            if war is None
            else Published(
                war=war,
                source=source,
                selection="best_on_test",
                leaks_label=method in LEAKING,
                note=note_of(method, name),
                dataset=name,
            ),
        )
        for (method, name), (protocol, war, source) in table.items()
    )


EXP_CLIP = {"exp_clip_b32": "B32", "exp_clip_b16": "B16", "exp_clip_l14": "L14"}
"""Methods with a released head of Exp-CLIP."""
EXP_CLIP_KIND = exp_clip.KINDS[2]
"""Their prompt kind."""


def of_exp_clip() -> tuple[Row, ...]:
    """Make the rows of Exp-CLIP with the numbers of its release's logs for the same prompt kind, the README table's in
    the note; and of plain CLIP on the sets on which no other table has it."""
    found = []
    for name in exp_clip.SETS:
        protocol = {**SETS, **STILLS}[name]
        for method, head in EXP_CLIP.items():
            log, table = exp_clip.log_row(head, EXP_CLIP_KIND, name), exp_clip.readme_row("Exp-CLIP", head, name)
            assert log is not None and table is not None
            published = replace(log, note=f"log, same prompt kind; README table: {table.text}, {table.note}")
            found.append(Row(configs=(f"methods/{method}", f"sets/{name}"), protocol=protocol, published=published))
        if name not in SETS:
            plain = exp_clip.readme_row("CLIP", "B32", name)
            configs = ("methods/zero_shot_face", f"sets/{name}")
            found.append(Row(configs=configs, protocol=protocol, published=plain))
    return tuple(found)


PAPER = "DFER-CLIP, arXiv 2308.13382"
ROWS = (
    *DEMO,
    *of_paper(DFER_CLIP, PAPER),
    *of_paper({f"zero_shot{kind}": ZERO_SHOT for kind in ZERO_SHOT_KINDS}, PAPER),
    *of_paper(DK_CLIP, "DK-CLIP, ACM MM 2024, and the logs of its release"),
    *of_exp_clip(),
    *unpublished(OURS),
    Row(configs=("methods/contrastive", "sets/mafw"), protocol=SETS["mafw"]),
    *of_accuracy(ACCURACY),
    *PUBLIC,
    *SUBJECTS,
    *PROBES,
)


def published_of(names: Sequence[str]) -> Published | None:
    """Return the published numbers of the row with these file names; None if they are not a row."""
    for row in ROWS:
        if {*names} in ({*row.configs}, {own_file(row.configs)}):
            return row.published
    return None


PAGE = """\
# Configurations

`methods/` says what is trained and how, `sets/` on what. A command joins one of each; `a.b=c` changes single keys:

```sh
dfer crossval methods/dfer_clip sets/dfew seed=2
```

The run folder is then `runs/dfew/dfer_clip`, unless `run=FOLDER` names another one. If a method needs other
settings on a set, the file SET/METHOD.yaml ("differs" below) replaces the two in a command. `clusters/` holds
the resources of jobs on SLURM and Ray, `jobs/` jobs other than trainings, `exp_clip/` the configurations of
[Exp-CLIP's own jobs](../docs/exp_clip.md): `dfer zeroshot exp_clip/zeroshot` gives one table of its prompt kinds and
data sets.

**Names and paths.** A word is first taken as the path of a file, then as the name of one of the files below, which come
with the package: names work from any folder.

**Bases and joins.** A file of yours says only what differs from its `base:`, which is a file or a list of files:

```yaml
base: [methods/dfer_clip, sets/dfew]
run: runs/dfew/short
epochs: 10
```

Mappings are merged key by key, lists and numbers are replaced; `null` takes an entry of a base away. A file overrules
its bases, and `a.b=c` overrules all files. Files that are joined, on the command line or in one `base:`, do not
overrule each other: a key to which they give different values is refused with the names of both, unless the file that
joins them, or `a.b=c`, gives the value.

**The numbers.** UAR / WAR in %, with a note where they need one. Published numbers are quoted, never mixed with ours;
the epoch of all of them was chosen on the test split (`select: best_on_test`), but for zero-shot rows. Their sources:
Zhao & Patras, BMVC 2023 (arXiv 2308.13382), for DFER-CLIP and its baselines; Li et al., ACM MM 2024, and the logs of
its release (github liliupeng28/DK-CLIP) for `dk_clip`; Zhao et al., WACV 2025, the logs and the README of its release
(github zengqunzhao/Exp-CLIP), for `exp_clip_*` and for `zero_shot_face` on stills and AFEW; Saadi et al., CLIVP-FER,
for `clivp_fer_true_label`; github WuJie1010/Facial-Expression-Recognition.Pytorch for `vgg19` and `resnet18`. The last
two give accuracies alone, which stand in the place of WAR. LEAKS LABEL marks rows whose model was given the true label
of the test clips. "pending": not yet run on the licensed data. An `a.b=c` that changes what a published number stands
for takes it off the run ([evaluation](../docs/evaluation.md#published-numbers)). This page is generated from
`dfer/jobs/rows.py` by `make configs`.

| config | data set, protocol | published | ours (seeds, std) | hardware | hours | commit |
| --- | --- | --- | --- | --- | --- | --- |
"""


KINDS_PAGE = """
## Exp-CLIP's other prompt kinds

The logs of its release for prompt kinds 1, 2, 4 and 5: UAR / WAR in %, means over folds. Kind 3 is in the rows above.
`dfer zeroshot exp_clip/zeroshot_all` gives ours for all kinds, heads and sets in one table, with these numbers beside.

"""


def kinds_table() -> str:
    """Make the table of the released logs for the prompt kinds that are no rows, a line a head and kind."""
    heads = ("head", "kind", *exp_clip.SETS)
    lines = [heads, ("---",) * len(heads)]
    for head in EXP_CLIP.values():
        for number, kind in enumerate(exp_clip.KINDS, start=1):
            logged = [exp_clip.log_row(head, kind, name) for name in exp_clip.SETS]
            if kind != EXP_CLIP_KIND:
                lines.append((head, f"{number}, `{kind}`", *(row.text for row in logged if row is not None)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page() -> str:
    """Make the text of `configs/README.md`."""
    return PAGE + "".join(f"{row.line()}\n" for row in ROWS) + KINDS_PAGE + kinds_table()


if __name__ == "__main__":
    (CONFIGS / "README.md").write_text(page(), encoding="utf-8")
