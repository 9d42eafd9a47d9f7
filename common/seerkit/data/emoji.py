"""Emoji of nine vendors with CLDR names, the embedded models' text-to-image set (licences: common/emoji/NOTICE)."""

import hashlib
import io
import json
import os
import re
import tarfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache_dic import UserError
from seerkit.io.files import written_whole
from seerkit.io.records import Form, misfit

FOLDER = Path(__file__).resolve().parents[2] / "emoji"  # prompts, their embeddings, NOTICE
PROMPTS = FOLDER / "prompts.txt"
STYLES = {
    "twemoji": "twemoji flat",
    "noto": "noto",
    "fluent-emoji-3d": "3d render",
    "fluent-emoji-flat": "fluent flat",
    "fluent-emoji": "fluent gradient",
    "noto-v1": "noto blob",
    "emojione": "emojione",
    "fxemoji": "firefox os",
    "streamline-emojis": "outline",
}  # set -> the phrase that follows the label in a prompt; the order is that of the style index
HELD_OUT_STYLE = "emojione"
NUM_HELD_OUT_LABELS = 200
MIN_STYLES_OF_HELD_OUT_LABEL = 5
TEST_SHARE = 0.1

ICONIFY, FLUENT_3D, EMOJIBASE = "iconify-json-", "lobehub-fluent-emoji-3d-", "emojibase-data-"  # of the archives' names
MAX_SIZE = 1024  # the largest edge that images are drawn at
RASTER_SIZE = 256  # edge of the fluent-emoji-3d images, and the least that vector images are drawn at
SHORTCODES = ("emojibase", "iamcal", "github")  # chat programs' names, for icons that go by none of CLDR's or Unicode's
SKIN_TONES = {f"{code:x}" for code in range(0x1F3FB, 0x1F400)}
SKIN_TONE_NAME = re.compile(r"(?:-(?:medium-light|medium-dark|light|medium|dark))+$")  # of the fluent sets


# ---------------------------------------------------------------------------------------------------------------- load


@dataclass(frozen=True, kw_only=True)
class EmojiData:
    """N images with their prompts "label, style". The four masks are disjoint and cover all images."""

    images: Tensor  # (N, 3, S, S) uint8, RGB on white
    label: Tensor  # (N,) int64, index of `labels`
    style: Tensor  # (N,) int64, index of `styles`
    labels: list[str]  # CLDR short names; the vendor's own name where CLDR has none for the image
    styles: list[str]
    chars: list[str]  # the emoji of each label, "" where CLDR has none
    groups: list[str]  # the Unicode group of each label ("food & drink"), "" where CLDR has none
    train: Tensor  # (N,) bool, as the other three
    test: Tensor  # a tenth of the (label, style) pairs of the rest
    held_out_style: Tensor  # one style in whole
    held_out_label: Tensor  # labels that no training image has, in all other styles

    def prompt(self, index: int) -> str:
        """The prompt of one image."""
        return f"{self.labels[self.label[index]]}, {self.styles[self.style[index]]}"


def find_emoji(folder: str | Path | None = None, size: int = 32) -> Path:
    """`emoji-{size}.npz` in `folder`, else $EMOJI_DATA, else data/emoji in the repository; or FileNotFoundError."""
    folder = Path(folder or os.environ.get("EMOJI_DATA") or Path(__file__).resolve().parents[3] / "data" / "emoji")
    path = folder / f"emoji-{size}.npz"
    if not path.is_file():
        command = "bash scripts/get_emoji.sh" + ("" if size == 32 else f" {size}")
        raise FileNotFoundError(f"{path} is not there; make it with `{command}`")
    return path


def load_emoji(folder: str | Path | None = None, size: int = 32) -> EmojiData:
    """The set at size x size pixels with its split; FileNotFoundError says how to make it (see `find_emoji`)."""
    path = find_emoji(folder, size)
    try:
        with np.load(path) as file:
            images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).contiguous()  # (N, S, S, 3) -> (N, 3, S, S)
            label, style = (torch.from_numpy(file[name]).long() for name in ("label", "style"))
            labels, styles, chars, groups = (file[name].tolist() for name in ("labels", "styles", "chars", "groups"))
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it and make it again") from error
    counts, sizes = {len(images), len(label), len(style)}, {len(labels), len(chars), len(groups)}
    known = all(((index >= 0) & (index < len(names))).all() for index, names in ((label, labels), (style, styles)))
    if len(counts) > 1 or len(sizes) > 1 or not known or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise UserError(f"{path} is no set of emoji; remove it and make it again")
    masks = split(label, style, labels, styles)
    return EmojiData(
        images=images, label=label, style=style, labels=labels, styles=styles, chars=chars, groups=groups, **masks
    )


def split(label: Tensor, style: Tensor, labels: Sequence[str], styles: Sequence[str]) -> dict[str, Tensor]:
    """The masks of EmojiData, each (N,) bool, from indices (N,) into the names.

    A function of the names alone, so that it is the same at every size. Of what is held out, the style comes first: its
    images of a held-out label belong to the style.
    """
    pairs = list(zip(label.tolist(), style.tolist(), strict=True))
    num_styles = Counter(name for name, _ in set(pairs))
    wide = sorted(
        (index for index, count in num_styles.items() if count >= MIN_STYLES_OF_HELD_OUT_LABEL),
        key=lambda index: (stable_hash("held out", labels[index]), index),
    )
    unseen = set(wide[:NUM_HELD_OUT_LABELS])
    of_test = {pair: stable_hash("test", labels[pair[0]], styles[pair[1]]) < TEST_SHARE for pair in set(pairs)}
    held_out_style = torch.tensor([styles[s] == HELD_OUT_STYLE for _, s in pairs], dtype=torch.bool)
    held_out_label = torch.tensor([name in unseen for name, _ in pairs], dtype=torch.bool) & ~held_out_style
    rest = ~held_out_style & ~held_out_label
    test = torch.tensor([of_test[pair] for pair in pairs], dtype=torch.bool) & rest
    return {
        "train": rest & ~test, "test": test, "held_out_style": held_out_style, "held_out_label": held_out_label
    }  # fmt: skip


def stable_hash(*texts: str) -> float:
    """A number in [0, 1) that is the same in every process and on every machine, unlike Python's hash()."""
    digest = hashlib.sha256("\n".join(texts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in float64


# --------------------------------------------------------------------------------------------------------------- build

ICON_SET: Form = {"icons": {str: {"body": str}}, "aliases": (None, {str: dict}), "chars": (None, {str: str})}


@dataclass(frozen=True)
class Icon:
    """One image before it is drawn: an SVG text or the bytes of a raster file."""

    style: str
    name: str
    source: str | bytes


@dataclass(frozen=True)
class Cldr:
    """What emojibase knows of an emoji."""

    label: str
    char: str
    group: str


def build_emoji(packages: Path, out: Path, size: int, report: Callable[[int, int], None] | None = None) -> Path:
    """Draw every set without its skin-tone variants and write `out`/emoji-{size}.npz, whose path is returned.

    packages: folder of the npm archives of @iconify/json, @lobehub/fluent-emoji-3d and emojibase-data (.tgz). size: edge in
    pixels, >= 8. report: called with (icons drawn, all icons) after each. The file holds images (N, S, S, 3) uint8, label
    and style (N,) int32, and the names labels, styles, chars and groups. Left out are exact copies within a label and style,
    and images that are all white (the digits of noto-v1 are white). Raises UserError for a
    missing archive or set, and without resvg-py.
    """
    if not 8 <= size <= MAX_SIZE:
        raise UserError(f"size {size} is too {'small' if size < 8 else 'large'} to draw an emoji; take 8 to {MAX_SIZE}")
    sets = _read_iconify(find_archive(packages, ICONIFY))
    cldr = _Names(find_archive(packages, EMOJIBASE), sets)
    icons = [*_vector_icons(sets, cldr), *_raster_icons(find_archive(packages, FLUENT_3D))]
    icons.sort(key=lambda icon: list(STYLES).index(icon.style))
    images, label, style, seen = [], [], [], set()
    labels: dict[str, Cldr] = {}
    for number, icon in enumerate(icons, start=1):
        named = cldr.find(icon.style, icon.name)
        image = draw(icon.source, size)
        copy = (named.label, icon.style, image.tobytes())
        if copy not in seen and image.min() < 255:
            seen.add(copy)
            labels.setdefault(named.label, named)
            images.append(image)
            label.append(named.label)
            style.append(list(STYLES).index(icon.style))
        if report:
            report(number, len(icons))
    names = sorted(labels)
    index = {name: number for number, name in enumerate(names)}
    path = Path(out) / f"emoji-{size}.npz"
    with written_whole(path) as temporary:
        np.savez_compressed(
            temporary,
            images=np.stack(images),
            label=np.array([index[name] for name in label], np.int32),
            style=np.array(style, np.int32),
            labels=np.array(names),
            styles=np.array(list(STYLES.values())),
            chars=np.array([labels[name].char for name in names]),
            groups=np.array([labels[name].group for name in names]),
        )
    return path


def draw(source: str | bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of an SVG text or a raster file: drawn large, laid on white, reduced by a Lanczos filter."""
    large = max(RASTER_SIZE, 4 * size)
    if isinstance(source, str):
        try:
            from resvg_py import svg_to_bytes
        except ModuleNotFoundError as error:
            raise UserError("drawing SVG needs resvg-py; install it with `pip install resvg-py`") from error
        raster = svg_to_bytes(svg_string=source, width=large, height=large, skip_system_fonts=True)
    else:
        raster = source
    with Image.open(io.BytesIO(raster)) as file:
        image = file.convert("RGBA")
    square = Image.new("RGBA", (max(image.size),) * 2, "white")
    square.alpha_composite(image, tuple((square.width - edge) // 2 for edge in image.size))
    return np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def find_archive(packages: Path, prefix: str) -> Path:
    """The one archive in `packages` whose name begins with `prefix`; UserError otherwise."""
    found = sorted(Path(packages).glob(f"{prefix}*.tgz"))
    if len(found) != 1:
        raise UserError(
            f"{packages} holds {len(found)} archives {prefix}*.tgz instead of one; `bash scripts/get_emoji.sh` fetches them"
        )
    return found[0]


def _read_iconify(archive: Path) -> dict[str, dict[str, Any]]:
    """Set name -> its icon set (https://iconify.design/docs/types/iconify-json.html)."""
    wanted = {f"package/json/{name}.json": name for name in STYLES if name != "fluent-emoji-3d"}
    members = _members(archive, lambda name: name in wanted)
    sets = {wanted[name]: _parsed(archive, name, data, ICON_SET) for name, data in members}
    if missing := [name for name in wanted.values() if name not in sets]:
        raise UserError(f"{archive} lacks the icon set {', '.join(missing)}; fetch it again")
    return sets


def _parsed(archive: Path, name: str, data: bytes, form: Form) -> Any:
    """The JSON value of a member of an archive; UserError if it is none or of another form."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} in {archive} is not JSON ({error}); fetch it again") from error
    if found := misfit(value, form):
        raise UserError(f"{name} in {archive} is not what it was ({found}); fetch the version that NOTICE names")
    return value


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile() and wanted(member.name) and (opened := file.extractfile(member)):
                    yield member.name, opened.read()
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be read ({error}); fetch it again") from error


def _vector_icons(sets: Mapping[str, Mapping[str, Any]], cldr: "_Names") -> Iterator[Icon]:
    for style, icons in sets.items():
        for name, icon in icons["icons"].items():
            if not icon.get("hidden") and not cldr.is_skin_tone(style, name):
                yield Icon(style, name, svg(icon, icons))


def _raster_icons(archive: Path) -> Iterator[Icon]:
    for name, data in _members(archive, lambda name: name.endswith(".webp")):
        stem = Path(name).stem
        if not SKIN_TONES & set(codes(stem)):
            yield Icon("fluent-emoji-3d", stem, data)


def svg(icon: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The SVG of an icon of an Iconify set; what is not square is centred."""
    left, top, width, height = (
        icon.get(key, defaults.get(key, value))
        for key, value in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    edge = max(width, height)
    box = f"{left - (edge - width) / 2:g} {top - (edge - height) / 2:g} {edge:g} {edge:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{edge:g}" height="{edge:g}" viewBox="{box}">{icon["body"]}</svg>'
    )


# --------------------------------------------------------------------------------------------------------------- names


CLDR_FORMS: dict[str, Form] = {
    "package/en/data.json": [{"hexcode": str, "label": str, "emoji": str}],
    "package/en/messages.json": {"groups": [{"order": int, "message": str}]},
}
SHORTCODE_FORM: Form = {str: (str, [str])}


class _Names:
    """CLDR's names for the icons: by the emoji where a set gives it, else by the icon's own, older or shortened name."""

    def __init__(self, archive: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
        """archive: emojibase-data; sets: Iconify's, some of which map their names to emoji."""
        names = [f"package/en/shortcodes/{kind}.json" for kind in SHORTCODES]
        files: dict[str, Any] = dict.fromkeys(["package/en/data.json", "package/en/messages.json", *names])
        forms = {**CLDR_FORMS, **dict.fromkeys(names, SHORTCODE_FORM)}
        for name, data in _members(archive, files.__contains__):
            files[name] = _parsed(archive, name, data, forms[name])
        if missing := [name for name, value in files.items() if value is None]:
            raise UserError(f"{archive} lacks {', '.join(missing)}; fetch it again")
        emoji, messages, *shortcodes = files.values()
        groups = {group["order"]: group["message"] for group in messages["groups"]}
        self.by_codes = {
            codes(entry["hexcode"]): Cldr(entry["label"], entry["emoji"], groups.get(entry.get("group"), ""))
            for entry in emoji
        }
        self.codes_of_name = {
            (s, name): codes(c) for s, icons in sets.items() for c, name in icons.get("chars", {}).items()
        }
        self.by_name = {squash(cldr.label): cldr for cldr in self.by_codes.values()}
        for (_, name), found in self.codes_of_name.items():
            self._add(name, found)
        for icons in sets.values():
            for alias, of in icons.get("aliases", {}).items():
                if (
                    "parent" in of
                    and not of.keys() & {"hFlip", "vFlip", "rotate"}
                    and squash(of["parent"]) in self.by_name
                ):
                    self.by_name.setdefault(squash(alias), self.by_name[squash(of["parent"])])
        for found in self.by_codes:
            if len(found) == 1:  # Unicode's name, from before there was CLDR's
                self._add(unicodedata.name(chr(int(found[0], 16)), ""), found)

        for table in shortcodes:
            for hexcode, short in table.items():
                for name in [short] if isinstance(short, str) else short:
                    self._add(name, codes(hexcode))

    def _add(self, name: str, found: tuple[str, ...]) -> None:
        if squash(name) and found in self.by_codes:
            self.by_name.setdefault(squash(name), self.by_codes[found])

    def find(self, style: str, name: str) -> Cldr:
        """CLDR's entry for an icon; the icon's own name, without emoji and group, where there is none."""
        known = self.codes_of_name.get((style, name)) or (codes(name) if style == "fluent-emoji-3d" else None)
        if known in self.by_codes:
            return self.by_codes[known]
        unnumbered = re.sub(r"-\d+$", "", name)
        country = re.sub(r"^flag-for-(flag-)?", "", unnumbered)
        for candidate in (name, unnumbered, f"flag-{country}", f"{unnumbered}-face"):
            if found := self.by_name.get(squash(candidate)):
                return found
        return Cldr(unnumbered.replace("-", " "), "", "")

    def is_skin_tone(self, style: str, name: str) -> bool:
        """Whether an icon is an emoji with a skin-tone modifier, or the modifier itself."""
        if "skin-tone" in name:
            return True
        if style == "fluent-emoji":  # names as the flat set, without its emoji
            style = "fluent-emoji-flat"
        if known := self.codes_of_name.get((style, name)):
            return bool(SKIN_TONES & set(known))
        base = SKIN_TONE_NAME.sub("", name)
        return base != name and (style, base) in self.codes_of_name


def codes(hexcode: str) -> tuple[str, ...]:
    """The code points of "1F3F4-FE0F" in lower case and without what vendors leave out as they like.

    These are leading zeros, the variation selector and the end of a tag sequence.
    """
    return tuple(code.lstrip("0") for code in re.split("[-_]", hexcode.lower()) if code not in ("fe0f", "e007f"))


def squash(name: str) -> str:
    """A name's letters and digits alone, since vendors differ in the rest ("Curaçao", "curacao"; "man's shoe", "mansshoe")."""
    name = name.replace("&", " and ").replace("#", " hash ").replace("*", " asterisk ")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())
