"""Sets of samples as evaluators meet them: a folder of images, an .npz batch, a folder of videos; read one by one.

A set is whole or it is refused: a file that cannot be read is an error that names it, never a sample less. Files stand in the
order of their names, numbers in them by their values, so that img_2 comes before img_10.
"""

import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cache_dic import UserError
from seerkit.io.files import content_digest
from seerkit.io.media import read_picture, whole_video_size

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO = ".mp4"
SHOWN = 5  # names in a message
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
"""Of an ADM reference batch: mean and covariance of the whole data set's pool features, and of its spatial ones."""


class Samples(Protocol):
    """A set in a fixed order. path: what was opened. is_video: whether a sample has more than one frame."""

    path: Path
    is_video: bool

    @property
    def names(self) -> Sequence[str]:
        """One for each sample, for messages and records."""

    def read(self, index: int) -> np.ndarray:
        """The frames of a sample, (T, H, W, 3) uint8, T = 1 of an image; UserError naming a file that cannot be read."""

    def digest(self) -> str:
        """What tells the contents of sets apart."""

    def statistics(self, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Two of STATISTICS in float64, None where the set has none; UserError for what cannot be such."""


def open_samples(path: str | Path) -> Samples:
    """A folder of images or of videos, or an .npz batch; UserError for anything else, and for a mixture."""
    path = Path(path)
    if path.suffix == ".npz":
        return NpzBatch(path)
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder of images or videos nor an .npz batch")
    files = sorted((file for file in path.iterdir() if not file.name.startswith(".")), key=_in_order)
    images = [file for file in files if file.suffix.lower() in IMAGES]
    videos = [file for file in files if file.suffix.lower() == VIDEO]
    if others := [file.name for file in (*images, *videos) if not file.is_file()]:
        raise UserError(
            f"{path} holds {in_words(others)}: no files, or links to none; move them elsewhere or make them anew"
        )
    if images and videos:
        raise UserError(
            f"{path} holds images and videos ({images[0].name}, {videos[0].name}); name a folder of one kind"
        )
    if not images and not videos:
        raise UserError(f"{path} holds neither images ({', '.join(IMAGES)}) nor videos ({VIDEO})")
    if (path / "record.json").is_file():
        raise UserError(f"{path} is the folder of a run, whose samples are in folders of their own; name one of these")
    stems = Counter(file.stem for file in images)
    if twins := [file.name for file in images if stems[file.stem] > 1]:
        raise UserError(f"{path} holds several files of one name, {in_words(twins)}; keep one image of a sample")
    return VideoFolder(path, videos) if videos else ImageFolder(path, images)


NUMBER = re.compile("([0-9]+)")


def _in_order(file: Path) -> tuple[list[str | int], str]:
    """What files are sorted by: texts and numbers of the name in turn, then the name, where numbers differ in zeros alone."""
    parts = NUMBER.split(file.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], file.name


def check_pairs(samples: Samples, pairs: Samples) -> None:
    """UserError unless files that would be compared have one name, or one number, such as 000007.png and img_7.jpg.

    A number counts where the names of a folder differ in it alone: a cat-0.mp4 and a dog-0.mp4 are no pair.
    """
    if not isinstance(samples, _Files) or not isinstance(pairs, _Files):
        return
    numbers = [_numbers(one.files) for one in (samples, pairs)]
    for ours, theirs, number, other in zip(samples.files, pairs.files, *numbers, strict=True):
        if ours.stem != theirs.stem and (number is None or number != other):
            raise UserError(
                f"{ours} would be compared with {theirs}; pairs are files of one name or one number, rename or remove what "
                "belongs to no pair"
            )


def _numbers(files: Sequence[Path]) -> list[int | None]:
    """The last number in the name of each file, None of all where the names differ in more than that."""
    parts = [NUMBER.split(file.stem) for file in files]  # texts at even places, numbers at odd ones
    rests = {(*one[:-2], one[-1]) for one in parts}
    return [int(one[-2]) if len(rests) == 1 and len(one) > 1 else None for one in parts]


class _Files:
    """Samples that are files of a folder, by name."""

    is_video = False

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self.files = path, list(files)

    @property
    def names(self) -> Sequence[str]:
        return [file.name for file in self.files]

    def digest(self) -> str:
        return content_digest(*self.files)

    def statistics(self, mean: str, covariance: str) -> None:
        return None


class ImageFolder(_Files):
    """Images, as RGB on white."""

    def read(self, index: int) -> np.ndarray:
        return read_picture(self.files[index])[None]


class VideoFolder(_Files):
    """Videos, tried by ffmpeg once and read to their last frame by OpenCV."""

    is_video = True

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        super().__init__(path, files)
        self._whole: set[int] = set()

    def read(self, index: int) -> np.ndarray:
        file = self.files[index]
        if index not in self._whole and whole_video_size(file) is None:  # OpenCV passes over damage
            raise UserError(
                f"video {file} is cut or damaged: it does not decode to its end without an error; make it anew"
            )
        self._whole.add(index)
        return read_video(file)[0]


class NpzBatch:
    """Images `arr_0` (N, H, W, 3) of uint8, as ADM's evaluator takes them; read from the disk one by one.

    A reference batch may have STATISTICS, too.
    """

    is_video = False

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                info = archive.getinfo("arr_0.npy")
                if is_stored := info.compress_type == zipfile.ZIP_STORED:
                    _read_through(archive, info)
            self.keys = {Path(name).stem for name in members}
            if is_stored:
                self.images = _mapped(path, info)
            else:  # nothing can be read in its midst
                with np.load(path, allow_pickle=False) as arrays:
                    self.images = arrays["arr_0"]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is no batch of images: {error}; it must hold arr_0, (N, H, W, 3) of uint8"
            ) from error
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise UserError(f"arr_0 of {path} is {shape} of {self.images.dtype}; it must be (N, H, W, 3) of uint8")

    @property
    def names(self) -> Sequence[str]:
        return [f"{self.path.name}[{index}]" for index in range(len(self.images))]

    def read(self, index: int) -> np.ndarray:
        return np.array(self.images[index : index + 1])

    def digest(self) -> str:
        return content_digest(self.path)

    def statistics(self, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray] | None:
        if not {mean, covariance} & self.keys:
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                found = np.asarray(arrays[mean], np.float64), np.asarray(arrays[covariance], np.float64)
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{mean} and {covariance} of {self.path} cannot be read: {error}; it must hold both or neither"
            ) from error
        width = found[0].size
        finite = all(np.isfinite(values).all() for values in found)
        if (found[0].shape, found[1].shape) != ((width,), (width, width)) or not finite:
            raise UserError(
                f"{mean} and {covariance} of {self.path} are {found[0].shape} and {found[1].shape}, "
                f"{'finite' if finite else 'not all of it finite'}; they must be a mean (D,) and a covariance (D, D)"
            )
        return found


def _read_through(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """BadZipFile where the bytes of a member are not those of its checksum, which a map of it does not look at."""
    with archive.open(info) as file:
        while file.read(2**24):
            pass


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """A member that is stored as it is, mapped from the disk. ValueError where the file is shorter than it says."""
    with path.open("rb") as file:
        file.seek(
            info.header_offset + 26
        )  # past the fixed part of a local header, to the lengths of name and extra field
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(name + extra, 1)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """Frames (T, H, W, 3) of uint8 in RGB and frames per second; UserError for a video that is not whole."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        told, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
        frames = list(_frames(capture))
    finally:
        capture.release()
    if not frames or len(frames) != told:
        raise UserError(f"video {path} cannot be read to its end: {len(frames)} of {max(told, 0)} frames; make it anew")
    return np.stack(frames), fps


def _frames(capture: Any) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame[..., ::-1]


def in_words(names: Sequence[str]) -> str:
    """Some names of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(itertools.islice(names, SHOWN)) + more
