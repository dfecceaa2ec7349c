"""Plan the generated trees of stills and of AFEW, and list all layouts by name."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dfer.emotions import BASIC6, BASIC7, BASIC8, CK7
from dfer.errors import UsageError, did_you_mean, message
from shards.synthetic.described import DESCRIBED
from shards.synthetic.layouts import LAYOUTS as OF_CLIPS
from shards.synthetic.layouts import LENGTHS, SHARES7, Clip, Form, Layout

SHARES8 = (*SHARES7, 0.10)
ONE = ((1, 1, 1.0),)
# Sequences of CK+ by class, in the order of CK7; Emotion-FAN's list at its public repository has 327 of them.
CK_SEQUENCES = (69, 28, 45, 83, 59, 25, 18)
WORDS = dict(zip(BASIC7, ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"), strict=True))
RAF_DB = dict(
    zip(("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), range(1, 8), strict=True)
)
FER2013 = dict(zip(("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"), range(7), strict=True))
AFFECTNET_ORDER = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
AFFECTNET = dict(zip(AFFECTNET_ORDER, range(8), strict=True))
CK = dict(zip(("anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise"), range(1, 8), strict=True))
KMU = dict(zip(BASIC6, ("HA", "SA", "AN", "SU", "DI", "FE"), strict=True))
FERPLUS_ORDER = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
USAGES = ("Training", "PublicTest", "PrivateTest")
FERPLUS_FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
AFFECTNET_CANVAS = (2.0, 1.5)

Files = dict[str, str | bytes]


def _nowhere(emotions: list[str], _: np.random.Generator) -> list[tuple[str, str, str]]:
    """The places of stills depend on persons and parts, and are made by `arrange`."""
    return [("", "", "")] * len(emotions)


def _none(_: Sequence[Clip], __: int) -> Files:
    return {}


def _placed(clips: list[Clip], place: Callable[[Clip], tuple[str, str, str]]) -> list[Clip]:
    """Give every clip the key, folder and file name that `place` makes."""
    placed = [(clip, *place(clip)) for clip in clips]
    return [replace(clip, key=key, folder=folder, name=name) for clip, key, folder, name in placed]


# RAF-DB


def arrange_raf_db(clips: list[Clip]) -> list[Clip]:
    """Number the pictures of train with five digits, those of test with four."""
    taken: Counter[int] = Counter()

    def place(clip: Clip) -> tuple[str, str, str]:
        taken[clip.fold] += 1
        key = f"train_{taken[1]:05d}" if clip.fold == 1 else f"test_{taken[2]:04d}"
        return key, "basic/Image/aligned", f"{key}_aligned.jpg"

    return _placed(clips, place)


def splits_raf_db(clips: Sequence[Clip], _: int) -> Files:
    """Make the list of labels, in its own spelling."""
    lines = "".join(f"{clip.key}.jpg {RAF_DB[clip.emotion]}\n" for clip in clips)
    return {"basic/EmoLabel/list_patition_label.txt": lines}


# AffectNet: the original release, the resized one, class folders


def arrange_affectnet(clips: list[Clip]) -> list[Clip]:
    """Name pictures by 56 hexadecimal digits in numbered folders, with several suffixes."""

    def place(clip: Clip) -> tuple[str, str, str]:
        name = f"{clip.index * 0x9E3779B97F4A7C15 % 2**224:056x}"
        folder, suffix = f"{clip.index % 7 + 1}", ("jpg", "JPG", "png", "jpeg")[clip.index % 4]
        return f"{folder}/{name}", f"Manually_Annotated_Images/{folder}", f"{name}.{suffix}"

    return _placed(clips, place)


def corner(clip: Clip, size: int, canvas: tuple[float, float]) -> tuple[int, int]:
    """Return left and top of a face of `size` pixels in its picture."""
    room = [round(size * share) - size for share in canvas]
    return clip.index * 37 % (room[0] + 1), clip.index * 23 % (room[1] + 1)


def splits_affectnet(clips: Sequence[Clip], size: int) -> Files:
    """Make the two lists; every eleventh picture has no face box."""
    names = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    files: Files = {}
    for fold, name in ((1, "training.csv"), (2, "validation.csv")):
        rows = []
        for clip in (clip for clip in clips if clip.fold == fold):
            left, top = corner(clip, size, AFFECTNET_CANVAS)
            box = f"{left},{top},{size},{size}" if clip.index % 11 else "-1,-1,-1,-1"
            path = f"{clip.folder.rpartition('/')[2]}/{clip.name}"
            rows.append(f"{path},{box},1.5;2.5;3.5;4.5,{AFFECTNET[clip.emotion]},0.1,-0.2\n")
        files[f"Manually_Annotated_file_lists/{name}"] = "".join((f"{names}\n", *rows))
    return files


def arrange_resized(clips: list[Clip]) -> list[Clip]:
    """Number the pictures of each part from 0."""
    taken: Counter[int] = Counter()

    def place(clip: Clip) -> tuple[str, str, str]:
        part, number = ("train", "val")[clip.fold - 1], taken[clip.fold]
        taken[clip.fold] += 1
        return f"{part}/{number}", f"{part}_set/images", f"{number}.jpg"

    return _placed(clips, place)


def splits_resized(clips: Sequence[Clip], _: int) -> Files:
    """Make one .npy with the expression of every picture: a word in `train_set`, a number in `val_set`."""
    files: Files = {}
    for clip in clips:
        number = AFFECTNET[clip.emotion]
        data = io.BytesIO()
        np.save(data, np.array(str(number) if clip.fold == 1 else number), allow_pickle=False)
        name = clip.name.removesuffix(".jpg")
        files[f"{clip.folder.removesuffix('images')}annotations/{name}_exp.npy"] = data.getvalue()
    return files


def arrange_affectnet_folders(clips: list[Clip]) -> list[Clip]:
    """Put the pictures into folders by number."""

    def place(clip: Clip) -> tuple[str, str, str]:
        folder = f"{('train', 'val')[clip.fold - 1]}/{AFFECTNET[clip.emotion]}"
        return f"{folder}/image{clip.index:07d}", folder, f"image{clip.index:07d}.jpg"

    return _placed(clips, place)


# FER2013 and FERPlus


def arrange_fer2013(clips: list[Clip]) -> list[Clip]:
    """Sort by part, as the csv is; every picture becomes a row."""
    ordered = sorted(clips, key=lambda clip: clip.fold)
    numbered = [replace(clip, key=f"{row:05d}") for row, clip in enumerate(ordered)]
    return _placed(numbered, lambda clip: (clip.key, "fer2013.rows", f"{clip.key}.txt"))


def splits_fer2013(clips: Sequence[Clip], _: int) -> Files:
    """Make the beginnings and ends of the rows, between which the numbers of the pictures come."""
    rows = (f"{FER2013[clip.emotion]},{{}},{USAGES[clip.fold - 1]}\n" for clip in clips)
    return {"fer2013.csv": "emotion,pixels,Usage\n" + "".join(rows)}


def arrange_fer2013_folders(clips: list[Clip]) -> list[Clip]:
    """Put the pictures into folders by word; the names of those of test/ say which part they are of."""

    def place(clip: Clip) -> tuple[str, str, str]:
        folder = f"{'train' if clip.fold == 1 else 'test'}/{WORDS[clip.emotion]}"
        name = f"{USAGES[clip.fold - 1]}_{clip.index:08d}"
        return f"{folder}/{name}", folder, f"{name}.jpg"

    return _placed(clips, place)


def arrange_ferplus(clips: list[Clip]) -> list[Clip]:
    """Sort by part; a folder a part."""
    ordered = sorted(clips, key=lambda clip: clip.fold)
    numbered = [replace(clip, key=f"{row:05d}") for row, clip in enumerate(ordered)]
    return _placed(numbered, lambda clip: (clip.key, FERPLUS_FOLDERS[clip.fold - 1], f"fer{clip.key:0>7}.png"))


def splits_ferplus(clips: Sequence[Clip], _: int) -> Files:
    """Make the votes: seven to nine for the class, the others for the next column."""
    lines = [f"Usage,Image name,{','.join(FERPLUS_ORDER)},unknown,NF\n"]
    for clip in clips:
        votes = [0] * (len(FERPLUS_ORDER) + 2)
        at, most = FERPLUS_ORDER.index(clip.emotion), 7 + clip.index % 3
        votes[at], votes[at + 1] = most, 10 - most
        lines.append(f"{USAGES[clip.fold - 1]},{clip.name},{','.join(map(str, votes))}\n")
    return {"fer2013new.csv": "".join(lines)}


# CK+, CK+48, KMU-FED


def _sequences(clips: list[Clip]) -> list[tuple[Clip, str, int]]:
    """Number the sequences of each person from 1."""
    taken: Counter[int] = Counter()
    found = []
    for clip in clips:
        taken[clip.identity] += 1
        found.append((clip, f"S{clip.identity + 5:03d}", taken[clip.identity]))
    return found


def arrange_ckplus(clips: list[Clip]) -> list[Clip]:
    """Give every sequence a folder of its own below that of the person."""
    return [
        replace(
            clip,
            key=f"{person}_{number:03d}",
            folder=f"cohn-kanade-images/{person}/{number:03d}",
            name=f"{person}_{number:03d}_{{:08d}}.png",
        )
        for clip, person, number in _sequences(clips)
    ]


def splits_ckplus(clips: Sequence[Clip], _: int) -> Files:
    """Make the labels, named after the last frame."""
    files: Files = {}
    for clip in clips:
        name = f"{clip.key}_{clip.frames:08d}_emotion.txt"
        files[f"Emotion/{clip.key.replace('_', '/')}/{name}"] = f"   {float(CK[clip.emotion]):.7e}\n"
    return files


def arrange_ckplus48(clips: list[Clip]) -> list[Clip]:
    """Put the last three frames of every sequence into the folder of their class."""
    return [
        replace(
            clip,
            key=f"{person}_{number:03d}",
            folder=f"CK+48/{ {'happiness': 'happy'}.get(clip.emotion, clip.emotion) }",
            name=f"{person}_{number:03d}_{{:08d}}.png",
            first=8 + clip.index % 13,
        )
        for clip, person, number in _sequences(clips)
    ]


def arrange_kmu_fed(clips: list[Clip]) -> list[Clip]:
    """Put all pictures into one folder: person, code, session, frame."""
    taken: Counter[tuple[int, str]] = Counter()

    def place(clip: Clip) -> tuple[str, str, str]:
        taken[clip.identity, clip.emotion] += 1
        session = f"s{taken[clip.identity, clip.emotion]:02d}"
        key = f"{clip.identity + 1:02d}_{KMU[clip.emotion]}_{session}"
        return key, "KMU-FED", f"{key}_{{:03d}}.jpg"

    return _placed(clips, place)


# AFEW


def arrange_afew(clips: list[Clip]) -> list[Clip]:
    """Number the clips with nine digits."""

    def place(clip: Clip) -> tuple[str, str, str]:
        key = f"{(clip.index + 1) * 3360:09d}"
        return key, f"{_afew_faces(clip)}/{key}", "{:03d}.jpg"

    return _placed(clips, place)


def _afew_faces(clip: Clip) -> str:
    base, end = ("Train_AFEW", "") if clip.fold == 1 else ("Val_AFEW", "_Val")
    return f"{base}/AlignedFaces_LBPTOP_Points{end}/Faces"


def splits_afew(clips: Sequence[Clip], _: int) -> Files:
    """Make an empty file for the video of every clip, in the folder of its class."""
    return {
        f"{('Train', 'Val')[clip.fold - 1]}_AFEW/{WORDS[clip.emotion].capitalize()}/{clip.key}.avi": ""
        for clip in clips
    }


PLAIN, GREY = Form(), Form(grey=True)


def _stills(
    name: str,
    emotions: tuple[str, ...],
    shares: tuple[float, ...],
    *,
    parts: tuple[float, ...],
    arrange: Callable[[list[Clip]], list[Clip]],
    splits: Callable[[Sequence[Clip], int], Files] = _none,
    size: int = 224,
    form: Form = PLAIN,
    lengths: tuple[tuple[int, int, float], ...] = ONE,
) -> Layout:
    return Layout(
        name=name,
        emotions=emotions,
        shares=shares,
        fold_shares=parts,
        lengths=lengths,
        place=_nowhere,
        splits=splits,
        size=size,
        form=form,
        arrange=arrange,
    )


STILLS = (
    _stills("raf_db", BASIC7, SHARES7, parts=(4, 1), arrange=arrange_raf_db, splits=splits_raf_db, size=100),
    _stills(
        "affectnet",
        BASIC8,
        SHARES8,
        parts=(4, 1),
        arrange=arrange_affectnet,
        splits=splits_affectnet,
        form=Form(canvas=AFFECTNET_CANVAS),
    ),
    _stills("affectnet_resized", BASIC8, SHARES8, parts=(4, 1), arrange=arrange_resized, splits=splits_resized),
    _stills("affectnet_folders", BASIC8, SHARES8, parts=(4, 1), arrange=arrange_affectnet_folders),
    _stills(
        "fer2013",
        BASIC7,
        SHARES7,
        parts=(8, 1, 1),
        arrange=arrange_fer2013,
        splits=splits_fer2013,
        size=48,
        form=Form(grey=True, csv="fer2013.csv"),
    ),
    _stills("fer2013_folders", BASIC7, SHARES7, parts=(8, 1, 1), arrange=arrange_fer2013_folders, size=48, form=GREY),
    _stills(
        "ferplus", BASIC8, SHARES8, parts=(8, 1, 1), arrange=arrange_ferplus, splits=splits_ferplus, size=48, form=GREY
    ),
    _stills(
        "ckplus",
        CK7,
        CK_SEQUENCES,
        parts=(1,),
        arrange=arrange_ckplus,
        splits=splits_ckplus,
        size=400,
        form=Form(start=0.0, canvas=(1.6, 1.2), grey=True),
        lengths=((4, 7, 1.0),),
    ),
    _stills(
        "ckplus48",
        CK7,
        CK_SEQUENCES,
        parts=(1,),
        arrange=arrange_ckplus48,
        size=48,
        form=Form(start=0.8, grey=True),
        lengths=((3, 3, 1.0),),
    ),
    _stills(
        "kmu_fed",
        BASIC6,
        (210, 180, 190, 200, 120, 200),
        parts=(1,),
        arrange=arrange_kmu_fed,
        size=240,
        form=Form(start=0.7, canvas=(2.0, 1.5)),
        lengths=((10, 10, 1.0),),
    ),
)
AFEW = Layout(
    name="afew",
    emotions=BASIC7,
    shares=SHARES7,
    fold_shares=(2, 1),
    lengths=LENGTHS,
    place=_nowhere,
    splits=splits_afew,
    size=128,
    arrange=arrange_afew,
)
LAYOUTS = OF_CLIPS | {layout.name: layout for layout in (*STILLS, AFEW, DESCRIBED)}


def layout_of(dataset: str) -> Layout:
    """The layout of a data set by name. Raises UsageError for an unknown one."""
    if dataset not in LAYOUTS:
        raise UsageError(
            message(
                "data set",
                expected="one whose raw tree can be generated",
                got=repr(dataset),
                do=did_you_mean(dataset, LAYOUTS),
            )
        )
    return LAYOUTS[dataset]
