"""`dfer import | export`: models as files."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer.cli import add_command, is_override, positive
from dfer.errors import UsageError, message

if TYPE_CHECKING:
    from dfer.jobs.importing import Taken

IMPORT = """dfer import DFEW-set1-model.pth --method dfer_clip --dataset dfew --fold 1 models/dfer_clip_dfew_1
dfer import FERV39k-model.pth --method dfer_clip --dataset ferv39k --dry-run
dfer import k400_16_16.pth --method dk_clip --dataset dfew models/x_clip_b16
dfer import PrivateTest_model.t7 --method vgg19 --dataset fer2013 models/vgg19_fer2013
dfer import ViT-B-32.pt --method towers --arch ViT-B-32-quickgelu models/clip_b32
dfer import ExpCLIP_B32_model.pth --method exp_clip models/exp_clip_b32"""
EXPORT = """dfer export runs/dfew/dfer_clip/fold_1 models/dfer_clip_dfew_1
dfer export runs/dfew/dfer_clip/fold_1 s3://bucket/models/dfer_clip --checkpoint last"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the two commands."""
    text = "make a saved model of a file that others published; nothing in the file is run"
    sub = add_command(commands, "import", text, IMPORT, _import)
    sub.add_argument("file", type=Path, metavar="FILE", help=".pth, .pt, .bin, .t7 or .safetensors")
    text = "folder to write (also s3://...), and a.b=c where the file differs from methods/METHOD"
    sub.add_argument("words", nargs="*", metavar="OUT a.b=c", help=text)
    sub.add_argument(
        "--method",
        required=True,
        help="a row of methods/: of DFER-CLIP, dk_clip, vgg19, resnet18; or towers (a CLIP), exp_clip (a head)",
    )
    text = "the set of sets/ that it was trained on: dfew, ferv39k, mafw; fer2013, ckplus, ckplus48 (vgg19, resnet18)"
    sub.add_argument("--dataset", metavar="SET", help=text)
    sub.add_argument("--fold", type=positive, help="fold of data.protocol that it was trained on")
    sub.add_argument("--arch", help="of --method towers: open_clip's name, or a JSON file")
    sub.add_argument("--dry-run", action="store_true", help="list what would be taken, and write nothing")
    text = "write a run's checkpoint as a saved model: weights, configuration and model card"
    sub = add_command(commands, "export", text, EXPORT, _export)
    sub.add_argument("run", metavar="RUN", help="run folder of one fold (also s3://...)")
    sub.add_argument("out", metavar="OUT", help="folder to write (also s3://...)")
    sub.add_argument(
        "--checkpoint",
        choices=("selected", "last", "best"),
        default="selected",
        help="the one that the run's selection rule chooses (default), the last, or the best",
    )


def _import(args: argparse.Namespace) -> None:
    args.overrides = [word for word in args.words if is_override(word)]
    folders = [word for word in args.words if not is_override(word)]
    if len(folders) > 1 or not (folders or args.dry_run):
        got, do = " and ".join(folders) or "none", "Give one folder, or --dry-run."
        raise UsageError(message("OUT", expected="a folder to write", got=got, do=do))
    args.out = folders[0] if folders else None
    taken = _taken(args)
    if args.dry_run:
        print("\n".join(taken.lines()))
    else:
        print(f"{args.out}: {_written(taken.new)}, {len(taken.weights)} tensors; use it as {taken.use}")


def _taken(args: argparse.Namespace) -> "Taken":
    _check_options(args)
    from dfer.jobs import importing
    from dfer.storage import Folder

    out = None if args.dry_run else Folder(args.out, what="OUT")
    if args.method == importing.TOWERS:
        return importing.import_towers(args.file, out, arch=args.arch, tell=_tell)
    if args.method == importing.HEAD:
        return importing.import_head(args.file, out, tell=_tell)
    return importing.import_model(
        args.file,
        out,
        method=args.method,
        dataset=args.dataset,
        fold=args.fold,
        overrides=args.overrides,
        tell=_tell,
    )


def _check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that the method lacks or does not have."""
    part = args.method in ("towers", "exp_clip")
    needed = {"towers": "arch", "exp_clip": None}.get(args.method, "dataset")
    given = {"arch": args.arch, "dataset": args.dataset, "fold": args.fold, "overrides": args.overrides or None}
    if needed and given[needed] is None:
        do = f"Give it: --{needed} NAME."
        raise UsageError(message(f"--{needed}", expected=f"one for --method {args.method}", got="none", do=do))
    odd = [name for name, value in given.items() if value is not None and name != needed]
    odd = [name for name in odd if part or name == "arch"]
    if odd:
        do = "Leave it out." if part else "Set model.towers.arch=ARCH."
        raise UsageError(message(odd[0], expected=f"none with --method {args.method}", got="one", do=do))


def _export(args: argparse.Namespace) -> None:
    from dfer.jobs.answering import config_of

    chosen = replace(config_of(args.run), run=args.run)
    from dfer.jobs.export import export
    from dfer.storage import Folder

    done = export(chosen, Folder(args.out, what="OUT"), choice=args.checkpoint)
    score = done.config.score
    origin = done.config.origin
    step = f"step {origin.step} ({origin.selection})" if origin.step else "nothing trained"
    print(f"{args.out}: {_written(done.new)}, {step}, {score.line if score else 'not evaluated'}")


def _written(new: bool | None) -> str:
    return "written" if new else "already there"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
