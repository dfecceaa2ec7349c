"""What a build in parts will make, and `plan.json`, by which hosts that share no process agree on it.

The plan follows from the split files, the options and the version of dfer, never from where the raw files lie or which
of them can be read. So every host computes the same plan, and several may write it at the same moment.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from dfer.errors import UsageError, message
from dfer.storage import TEMPORARY, Folder
from dfer.store.format import FORMAT_VERSION
from shards.shard import CONTENT_VERSION, BuildOptions, ShardPlan
from shards.sources.clips import RawSet

PLAN = "plan.json"
REPORT = re.compile(r"part_[0-9]+_of_[0-9]+\.json")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan.json` holds. digest: SHA-256 of all that decides which clips go into which shard, and how."""

    digest: str
    dataset: str
    clips: int
    shards: int

    def to_json(self) -> bytes:
        """The same bytes on every host."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def plan(raw: RawSet, options: BuildOptions, shards: Sequence[ShardPlan]) -> Plan:
    """The plan of these shards of a raw set."""
    facts = asdict(replace(raw, clips=(), notes=()))
    head = [version("dfer"), FORMAT_VERSION, CONTENT_VERSION, facts, asdict(options)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for shard in shards:
        # Each host may have the raw files in a folder of its own.
        clips = [{name: value for name, value in vars(clip).items() if name != "folder"} for clip in shard.clips]
        digest.update(json.dumps([shard.name, clips], sort_keys=True, default=asdict).encode())
    return Plan(digest=digest.hexdigest(), dataset=raw.dataset, clips=len(raw.clips), shards=len(shards))


def has_plan(out: Folder, wanted: Plan) -> bool:
    """Whether the folder has this plan; False when it has none. Raises UsageError when it has another one."""
    found = out.read(PLAN)
    if found is None or found == wanted.to_json():
        return found is not None
    raise UsageError(
        message(
            out.where(PLAN),
            expected=f"the plan of these split files, options and version of dfer ({wanted.digest[:12]})",
            got="another one, of a build in parts that is not finished",
            do="Give all parts the same ones; or end that build with a build without --part, which does what is left.",
        )
    )


def remove_plan(out: Folder, names: Sequence[str]) -> None:
    """Remove what a build in parts, or a killed process, left among the files `names`. The plan goes first: without it
    a manifest is that of a finished build, and a part that ends late takes its report back."""
    out.remove(PLAN)
    for name in names:
        if REPORT.fullmatch(name) or TEMPORARY.search(name):
            out.remove(name)
