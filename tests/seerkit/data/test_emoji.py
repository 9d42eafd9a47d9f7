import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seerkit.data import emoji
from seerkit.data.emoji import STYLES, build_emoji, find_emoji, load_emoji, split, squash, stable_hash, svg

MASKS = ("train", "test", "held_out_style", "held_out_label")
RED, WHITE = '<path fill="#f00" d="M4 4h8v8H4z"/>', '<path fill="#fff" d="M0 0h16v16H0z"/>'
APPLE, WAVE, FLAG = "1f34e", "1f44b", "1f3f4-e0067-e0062-e007f"


def add(archive: Path, files: dict[str, bytes | dict]) -> None:
    with tarfile.open(archive, "w:gz") as file:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path) -> Path:
    """Archives in the layout of the three npm packages, with one to four icons per set."""
    folder = tmp_path / "packages"
    folder.mkdir()
    sets = {name: {"icons": {"red-apple": {"body": RED}}} for name in STYLES if name != "fluent-emoji-3d"}
    sets["twemoji"] = {
        "icons": {
            "red-apple": {"body": RED, "left": 0, "width": 16, "height": 32},
            "waving": {"body": RED},
            "waving-dark-skin-tone": {"body": RED},
            "secret": {"body": RED, "hidden": True},
        },
        "chars": {APPLE: "red-apple", WAVE: "waving"},
        "aliases": {"pomme": {"parent": "red-apple"}},
    }
    sets["fluent-emoji-flat"] = {
        "icons": {"waving": {"body": RED}, "waving-medium-dark": {"body": RED}},
        "chars": {WAVE: "waving", f"{WAVE}-1f3fe": "waving-medium-dark"},
    }
    sets["fluent-emoji"] = {"icons": {"waving": {"body": RED}, "waving-light": {"body": RED}}}
    sets["noto"]["icons"]["waving-hand"] = {"body": WHITE}
    sets["emojione"]["icons"]["pomme"] = {"body": RED}
    sets["fxemoji"]["icons"] = {"redapple": {"body": RED}, "foxgrin": {"body": RED}}
    sets["streamline-emojis"]["icons"] = {f"red-apple-{i}": {"body": RED} for i in (1, 2)}
    add(folder / "iconify-json-0.0.0.tgz", {f"json/{name}.json": icons for name, icons in sets.items()})
    raster = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 255, 128)).save(raster, "webp", lossless=True)
    names = [APPLE, "1f3f4-e0067_e0062", f"{WAVE}-1f3fd"]
    add(
        folder / "lobehub-fluent-emoji-3d-0.0.0.tgz",
        {"package.json": {}} | {f"assets/{name}.webp": raster.getvalue() for name in names},
    )
    entries = [(APPLE, "red apple", "🍎", 1), (WAVE, "waving hand", "👋", 0), (FLAG, "flag: England", "🏴", 2)]
    add(
        folder / "emojibase-data-0.0.0.tgz",
        {
            "en/data.json": [
                {"hexcode": code.upper(), "label": label, "emoji": char, "group": group}
                for code, label, char, group in entries
            ],
            "en/messages.json": {
                "groups": [{"order": i, "message": m} for i, m in enumerate(("people", "food", "flags"))]
            },
        }
        | {f"en/shortcodes/{kind}.json": {WAVE.upper(): ["wave"]} for kind in emoji.SHORTCODES},
    )
    return folder


@pytest.fixture
def built(need, packages, tmp_path) -> Path:
    need("resvg_py")
    return build_emoji(packages, tmp_path / "out", 16)


def test_icons_get_cldr_names_whatever_the_vendor_calls_them(built):
    data = load_emoji(built.parent, 16)
    prompts = sorted(data.prompt(i) for i in range(len(data.images)))
    assert prompts == sorted(
        [f"red apple, {style}" for key, style in STYLES.items() if not key.startswith("fluent-emoji")]
        + ["red apple, 3d render", "flag: England, 3d render", "foxgrin, firefox os"]
        + [f"waving hand, {style}" for style in ("twemoji flat", "fluent flat", "fluent gradient")]
    )
    assert data.styles == list(STYLES.values())
    names = dict(zip(data.labels, zip(data.chars, data.groups, strict=True), strict=True))
    assert names == {
        "red apple": ("🍎", "food"),
        "waving hand": ("👋", "people"),
        "flag: England": ("🏴", "flags"),
        "foxgrin": ("", ""),
    }


def test_images_lie_on_white_and_what_is_not_square_is_centred(built):
    data = load_emoji(built.parent, 16)
    images = {data.prompt(i): image for i, image in enumerate(data.images)}
    apple = images["red apple, noto"]
    assert apple.shape == (3, 16, 16)
    assert apple.dtype == torch.uint8
    assert apple[:, 0, 0].tolist() == [255, 255, 255]
    assert apple[:, 8, 8].tolist() == [255, 0, 0]
    assert images["red apple, 3d render"][:, 8, 8].tolist() == pytest.approx([127, 127, 255], abs=1)
    tall = (images["red apple, twemoji flat"][1] < 128).nonzero()  # rows 4 to 12 of 32 and columns 12 to 20 of 32
    assert (tall.amin(0).tolist(), tall.amax(0).tolist()) == ([2, 6], [5, 9])


def test_white_images_and_copies_are_left_out(built):
    data = load_emoji(built.parent, 16)
    prompts = [data.prompt(i) for i in range(len(data.images))]
    assert "waving hand, noto" not in prompts
    assert prompts.count("red apple, outline") == prompts.count("red apple, emojione") == 1


def test_missing_packages_and_sets_are_named(packages, tmp_path):
    with pytest.raises(ValueError, match="too small"):
        build_emoji(packages, tmp_path, 4)
    add(packages / "iconify-json-0.0.0.tgz", {"json/noto.json": {"icons": {}}})
    with pytest.raises(ValueError, match="lacks the icon set twemoji"):
        build_emoji(packages, tmp_path, 16)
    with pytest.raises(ValueError, match="size 1000000000 is too large"):
        build_emoji(packages, tmp_path, 10**9)
    for content, message in (
        (b"{", "is not JSON"),
        ([], "it is .. instead of an object"),
        ({"icons": {"a": {}}}, "lacks .body"),
    ):
        add(packages / "iconify-json-0.0.0.tgz", {"json/noto.json": content})
        with pytest.raises(ValueError, match=rf"package/json/noto\.json in .*{message}"):
            build_emoji(packages, tmp_path, 16)
    (packages / "iconify-json-0.0.0.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        build_emoji(packages, tmp_path, 16)
    (packages / "iconify-json-0.0.0.tgz").unlink()
    with pytest.raises(ValueError, match=r"holds 0 archives iconify-json-.*get_emoji"):
        build_emoji(packages, tmp_path, 16)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"images": np.zeros((2, 16, 8, 3), np.uint8)},
        {"images": np.zeros(2, np.uint8)},
        {"images": np.zeros((3, 16, 16, 3), np.uint8)},
        {"label": np.array([0, 1])},
        {"style": np.array([0, -1])},
        {"chars": np.array(["", ""])},
    ],
)
def test_a_set_of_another_kind_is_refused(tmp_path, spoilt):
    names = {
        "labels": np.array(["cat"]),
        "styles": np.array(["noto"]),
        "chars": np.array([""]),
        "groups": np.array([""]),
    }
    index = np.zeros(2, np.int32)
    whole = {"images": np.zeros((2, 16, 16, 3), np.uint8), "label": index, "style": index, **names}
    np.savez(tmp_path / "emoji-16.npz", **whole)
    assert len(load_emoji(tmp_path, 16).images) == 2
    np.savez(tmp_path / "emoji-16.npz", **{**whole, **spoilt})
    with pytest.raises(ValueError, match="remove it and make it again"):
        load_emoji(tmp_path, 16)


def test_without_resvg_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match="pip install resvg-py"):
        emoji.draw(svg({"body": RED}, {}), 16)


def test_the_set_is_found_by_argument_and_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("EMOJI_DATA", str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"other.*bash scripts/get_emoji.sh`"):
        load_emoji()
    with pytest.raises(FileNotFoundError, match=r"get_emoji.sh 64`"):
        load_emoji(tmp_path, 64)
    (tmp_path / "emoji-8.npz").write_bytes(b"nothing")
    assert find_emoji(tmp_path, 8) == tmp_path / "emoji-8.npz"
    with pytest.raises(ValueError, match="cannot be read"):
        load_emoji(tmp_path, 8)
    (tmp_path / "emoji-8.npz").write_bytes(b"PK\3\4 a broken archive")
    with pytest.raises(ValueError, match="cannot be read"):
        load_emoji(tmp_path, 8)


@pytest.fixture(scope="module")
def names() -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
    """600 labels: the first 400 in all nine styles, the rest in four."""
    pairs = [(label, style) for label in range(600) for style in range(9 if label < 400 else 4)]
    label, style = torch.tensor(pairs + pairs[:50]).unbind(1)  # some prompts have two images
    return label, style, [f"thing {i}" for i in range(600)], list(STYLES.values())


def test_the_split_is_disjoint_and_covers_all(names):
    label, style, _, styles = names
    masks = split(*names)
    assert tuple(masks) == MASKS
    assert (torch.stack([masks[name] for name in MASKS]).sum(0) == 1).all()
    torch.testing.assert_close(masks["held_out_style"], style == styles.index("emojione"))
    unseen = set(label[masks["held_out_label"]].tolist())
    assert len(unseen) == 200
    assert max(unseen) < 400  # of those in at least five styles
    assert not unseen & set(label[masks["train"] | masks["test"]].tolist())
    share = masks["test"].sum() / (masks["train"] | masks["test"]).sum()
    assert share == pytest.approx(0.1, abs=0.02)
    pairs = [
        set(zip(label[masks[name]].tolist(), style[masks[name]].tolist(), strict=True)) for name in ("train", "test")
    ]
    assert not pairs[0] & pairs[1]  # two images of one prompt are on one side


def test_the_split_depends_on_names_alone(names):
    label, style, labels, styles = names
    masks = split(*names)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    place = order.argsort()  # label i is now called number place[i]
    rows = torch.arange(len(label) - 1, -1, -1)
    again = split(place[label[rows]], style[rows], [labels[i] for i in order], styles)
    for name in MASKS:
        assert torch.equal(again[name], masks[name][rows])


@pytest.mark.slow
def test_the_hash_is_the_same_everywhere():
    assert stable_hash("red apple", "noto") == stable_hash("red apple", "noto") != stable_hash("red applenoto")
    program = "from seerkit.data.emoji import stable_hash; print(stable_hash('red apple', 'noto'))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(other.stdout) == stable_hash("red apple", "noto") == 0.7609714484385464


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("man’s shoe", "mansshoe"),
        ("flag: Curaçao", "flag-curacao"),
        ("Trinidad & Tobago", "trinidad-and-tobago"),
        ("keycap: *", "keycap-asterisk"),
        ("keycap: #", "keycap-hash"),
    ],
)
def test_names_that_differ_in_punctuation_are_one(ours, theirs):
    assert squash(ours) == squash(theirs)


def test_the_command_builds_and_counts(need, packages, tmp_path, run_script):
    need("resvg_py")
    command = ["common/emoji/prepare_data.py", "--packages", packages, "--output-dir", tmp_path / "out", "--size", 8]
    done = run_script(*command, "--no-text")
    assert done.returncode == 0, done.stderr
    assert "emoji-8.npz: 12 images of 4 labels in 9 styles" in done.stdout
    assert "held_out_style 1" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["emoji-8.npz"]
    failed = run_script(*command[:2], tmp_path, *command[3:], "--no-text")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("prepare_data.py: error: ")
