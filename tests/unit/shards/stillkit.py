"""Small raw trees of stills, typed from the distributors' descriptions; nothing of the generator is used."""

import zlib
from pathlib import Path

from shards.sources.clips import RawSet
from tests.unit.shards import rawkit

HASH = "737db2483489148d783ef278f43f486c0a97e140fc4b6b61b84363ca"
"""A name of AffectNet's original release: 56 digits."""
AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
)
AFFECTNET_TRAIN = (
    f"1/{HASH}.jpg,10,4,20,16,150.5;20.5;30.5,1,0.5,0.1\n"
    "1/two.JPG,-1,-1,-1,-1,1;2,0,-2,-2\n"
    "689/three.png,2,3,8,6,1;2,7,0,0\n"
    "689/four.jpg,0,0,5,5,1;2,8,0,0\n"
    "689/five.jpg,0,0,5,5,1;2,10,0,0\n"
    "1/two.JPG,-1,-1,-1,-1,1;2,0,-2,-2"
)
AFFECTNET_VAL = f"3/{HASH[::-1]}.jpg,NULL,NULL,NULL,NULL,1;2,6,0,0\n3/b.TIF,0,0,4,4,1;2,3,0,0\n"
FER2013_ROWS = ((0, "Training"), (3, "Training"), (6, "PublicTest"), (5, "PrivateTest"))
FERPLUS = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n"
    "Training,,0,0,0,0,0,0,0,0,0,10\n"
    "PublicTest,fer0000001.png,0,5,5,0,0,0,0,0,0,0\n"
    "PrivateTest,fer0000002.png,0,0,0,1,0,0,0,2,7,0\n"
    "PrivateTest,fer0000003.png,0,0,1,0,0,1,0,8,0,0"
)
FERPLUS_FILES = {
    "FER2013Train": ["fer0000000.png"],
    "FER2013Valid": ["fer0000001.png"],
    "FER2013Test": ["fer0000002.png", "fer0000003.png"],
}


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))


def fill(folder: Path, *names: str, side: int = 24) -> None:
    for name in names:
        kind = {".png": "PNG", ".tif": "TIFF"}.get(Path(name).suffix.lower(), "JPEG")
        write(folder / name, rawkit.picture(zlib.crc32(str(folder / name).encode()), side=side, kind=kind))


def classes(raw: RawSet) -> dict[str, tuple[str, str | None]]:
    """Partition and class name of every clip by its key."""
    names = raw.emotions.names
    return {clip.key: (clip.partition, None if clip.label is None else names[clip.label]) for clip in raw.clips}


def raf_db(root: Path, *, images: str = "basic/Image/aligned", end: str = "_aligned.jpg") -> Path:
    write(
        root / "basic/EmoLabel/list_patition_label.txt",
        "train_00001.jpg 5\ntrain_00002.jpg 4\ntest_0001.jpg 1\ntest_0002.jpg 7",
    )
    fill(root / images, *(f"{name}{end}" for name in ("train_00001", "train_00002", "test_0001", "test_0002")))
    return root


def affectnet(root: Path, *, header: bool = True, lists: str = "Manually_Annotated_file_lists/") -> Path:
    head = AFFECTNET_HEADER if header else ""
    write(root / f"{lists}training.csv", head + AFFECTNET_TRAIN)
    write(root / f"{lists}validation.csv", head + AFFECTNET_VAL)
    images = root / "Manually_Annotated_Images"
    fill(images / "1", f"{HASH}.jpg", "two.JPG", side=40)
    fill(images / "689", "three.png", side=40)
    fill(images / "3", f"{HASH[::-1]}.jpg", "b.TIF", side=40)
    return root


def npy(descr: str, shape: str, data: bytes) -> bytes:
    """A .npy file, typed from numpy's description of the format, version 1."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + data


def resized(root: Path) -> Path:
    """The resized release: a word of one letter, numbers of several types, two of which are left out."""
    values = {
        "train_set": {"0": npy("<U1", "()", "1".encode("utf-32-le")), "7": npy("<i8", "()", (7).to_bytes(8, "little"))},
        "val_set": {
            "0": npy("|S1", "(1,)", b"0"),
            "3": npy("<f4", "()", b"\x00\x00\xc0\x40"),
            "5": npy("|u1", "()", b"\x08"),
        },
    }
    for part, numbers in values.items():
        for number, data in numbers.items():
            fill(root / part / "images", f"{number}.jpg")
            write(root / part / "annotations" / f"{number}_exp.npy", data)
            write(root / part / "annotations" / f"{number}_val.npy", npy("<U4", "()", "-0.1".encode("utf-32-le")))
    return root


def pixels(row: int) -> list[int]:
    """The 48 x 48 grey values of a row."""
    return [(7 * row + number * (row + 1)) % 256 for number in range(48 * 48)]


def fer2013(root: Path, *, name: str = "fer2013.csv", encoding: str = "utf-8", end: str = "\n") -> Path:
    lines = ["emotion,pixels,Usage"]
    lines += [
        f"{emotion},{' '.join(map(str, pixels(row)))},{usage}" for row, (emotion, usage) in enumerate(FER2013_ROWS)
    ]
    write(root / name, end.join(lines), encoding)
    return root


def icml(root: Path) -> Path:
    """The other copy: leading blanks in the header, another order, quotes."""
    lines = ["emotion, Usage, pixels"]
    lines += [
        f'{emotion},{usage},"{" ".join(map(str, pixels(row)))}"' for row, (emotion, usage) in enumerate(FER2013_ROWS)
    ]
    write(root / "icml_face_data.csv", "\r\n".join(lines))
    return root


def ferplus(root: Path) -> Path:
    write(root / "fer2013new.csv", FERPLUS)
    for folder, names in FERPLUS_FILES.items():
        fill(root / folder, *names, side=48)
    return root


def ckplus(root: Path, *, labels: str = "Emotion", images: str = "cohn-kanade-images") -> Path:
    frames = {"S005/001": range(1, 12), "S010/002": range(1, 15), "S010/006": range(1, 9), "S999/003": range(1, 3)}
    for folder, numbers in frames.items():
        fill(root / images / folder, *(f"{folder.replace('/', '_')}_{number:08d}.png" for number in numbers))
        write(root / images / folder / ".DS_Store", b"\0\0\0\1Bud1")
        (root / labels / folder).mkdir(parents=True)
    write(root / labels / "S005/001/S005_001_00000011_emotion.txt", "   3.0000000e+00\n")
    write(root / labels / "S010/002/S010_002_00000014_emotion.txt", "   7.0000000e+00")
    write(root / labels / "S999/003/S999_003_00000002_emotion.txt", "   2.0000000e+00\n", "utf-16")
    write(root / labels / ".DS_Store", b"\0\0\0\1Bud1")
    write(root / labels / "S005/.DS_Store", b"\0\0\0\1Bud1")
    return root


def ckplus48(root: Path, *, base: str = "CK+48") -> Path:
    fill(root / base / "anger", "S010_004_00000017.png", "S010_004_00000018.png", "S010_004_00000019.png", side=48)
    fill(root / base / "contempt", "S138_008_00000007.png", side=48)
    fill(root / base / "happy", "S011_006_00000011.png", side=48)
    write(root / base / ".DS_Store", b"\0\0\0\1Bud1")
    return root


def kmu_fed(root: Path, *, base: str = "KMU-FED") -> Path:
    fill(
        root / base,
        "01_AN_mr_005.jpg",
        "01_AN_mr_006.jpg",
        "05_HA_uj_080.jpg",
        "03_HA_s02_036.jpg",
        "12_SU_s02_001.jpg",
    )
    for number in ("005", "006"):
        write(root / base / f"1_AN_mr_{number}.jpg", (root / base / f"01_AN_mr_{number}.jpg").read_bytes())
    write(root / base / "Thumbs.db", b"\0")
    return root


def afew(root: Path, *, train: str = "Train_AFEW", val: str = "Val_AFEW") -> Path:
    faces = {train: "AlignedFaces_LBPTOP_Points", val: "AlignedFaces_LBPTOP_Points_Val"}
    clips = {train: {"Angry": ["013736360"], "Happy": ["000046280", "000149120"]}, val: {"Neutral": ["012949687"]}}
    for part, words in clips.items():
        for word, ids in words.items():
            for clip in ids:
                write(root / part / word / f"{clip}.avi", b"")
                fill(root / part / faces[part] / "Faces" / clip, "001.jpg", "002.jpg", "010.jpg")
    return root
