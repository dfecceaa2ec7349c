"""The plan of a build in parts, and `plan.json`, by which independent hosts check that they follow the same plan.

The plan depends on the split files, the options and the version of dfer, but not on the location of the raw files or on
which of them can be read. So every host computes the same plan, and several hosts may write it at the same time.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from dfer.config import ConfigProblem, from_plain
from dfer.errors import UsageError, message
from dfer.storage import TEMPORARY, Folder
from dfer.store.format import FORMAT_VERSION
from shards.shard import CONTENT_VERSION, BuildOptions, ShardPlan
from shards.sources.clips import RawSet

PLAN = "plan.json"
PLACES = ("folder", "picture")
"""Fields of a clip that say where its raw files are."""
REPORT = re.compile(r"part_[0-9]+_of_[0-9]+\.json")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The contents of `plan.json`. digest: SHA-256 of everything that determines the clips of each shard and their
    form."""

    digest: str
    dataset: str
    clips: int
    shards: int

    def to_json(self) -> bytes:
        """Serialise the plan; the bytes are the same on every host."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def plan(raw: RawSet, options: BuildOptions, shards: Sequence[ShardPlan]) -> Plan:
    """Make the plan of these shards of a raw set."""
    facts = asdict(replace(raw, clips=(), notes=()))
    head = [version("dfer"), FORMAT_VERSION, CONTENT_VERSION, facts, asdict(options)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for shard in shards:
        # The places are not part of the digest: each host may have the raw files in another folder.
        clips = [{n: value for n, value in vars(clip).items() if n not in PLACES} for clip in shard.clips]
        digest.update(json.dumps([shard.name, clips], sort_keys=True, default=asdict).encode())
    return Plan(digest=digest.hexdigest(), dataset=raw.dataset, clips=len(raw.clips), shards=len(shards))


def read_plan(out: Folder) -> Plan | None:
    """Read `plan.json`; None if there is none or it is damaged."""
    data = out.read(PLAN)
    try:
        return None if data is None else from_plain(Plan, json.loads(data))
    except (ValueError, RecursionError, ConfigProblem):
        return None


def has_plan(out: Folder, wanted: Plan) -> bool:
    """Whether the folder has this plan; False if it has none. Raises UsageError if it has another one."""
    found = out.read(PLAN)
    if found is None or found == wanted.to_json():
        return found is not None
    raise UsageError(
        message(
            out.where(PLAN),
            expected=f"the plan of these split files, options and version of dfer ({wanted.digest[:12]})",
            got="another one, of a build in parts that is not finished",
            do="Give all parts the same files, options and version; or finish that build with a build without --part.",
        )
    )


def remove_plan(out: Folder, names: Sequence[str]) -> None:
    """Remove the files of a build in parts, and temporary files of killed processes, among the files `names`. The plan
    is removed first: without it, the manifest is that of a finished build, and a part that ends later deletes its own
    report."""
    out.remove(PLAN)
    for name in names:
        if REPORT.fullmatch(name) or TEMPORARY.search(name):
            out.remove(name)
