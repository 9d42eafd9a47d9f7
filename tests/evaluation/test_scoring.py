"""The frame of scoring: sets, readings that are kept, and what happens to them when files or runs are damaged."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_dic import UserError
from evaluation.metrics import mean_interval, psnr
from evaluation.scoring import read as reading_module
from evaluation.scoring.measures import NAMES, Measure, Reading, find_measure, mean_score
from evaluation.scoring.prompts import listed_prompts, prompts_in_names, recorded_prompts
from evaluation.scoring.read import PIXELS, SHARD, Readout, Shard, Task, check_task, read_samples, score
from evaluation.scoring.samples import NpzBatch, open_samples, read_video
from seerkit.devices.distributed import World
from seerkit.io.files import write_json
from seerkit.io.media import save_mp4, save_png

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, torch.device("cpu"))


def random_images(seed: int, count: int = 4, height: int = 12, width: int = 14) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_images(folder: Path, images: np.ndarray) -> Path:
    for index, pixels in enumerate(images):
        save_png(folder / f"{index:06d}.png", pixels)
    return folder


def write_videos(folder: Path, count: int = 3, frames: int = 4, names: str = "a cat-{}") -> Path:
    for index in range(count):
        save_mp4(folder / f"{names.format(index)}.mp4", random_images(index, frames, 32, 48), 8, quality="lossless")
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """120 images, three shards, in a folder of their own."""
    return write_images(tmp_path_factory.mktemp("images"), random_images(0, 120))


@pytest.fixture(scope="module")
def paired_folder(tmp_path_factory) -> Path:
    noisy = random_images(0, 120) ^ random_images(1, 120) % 8
    return write_images(tmp_path_factory.mktemp("pairs"), noisy)


@pytest.fixture
def measured(monkeypatch) -> Callable[..., list[range]]:
    """`measured("a", "b")` puts measures of these names in the place of all others, of one reading: the mean grey value.

    What it returns grows by the shards that the reading has looked at.
    """

    def put(*names: str, needs: frozenset[str] = frozenset(), of: tuple[str, ...] = ()) -> list[range]:
        looked: list[range] = []

        def read(shard: Shard) -> Mapping[str, np.ndarray]:
            looked.append(shard.indices)
            return {"grey": np.array([frames.mean() for frames in shard.frames])}

        def make(name: str) -> Measure:
            return Measure(
                name=name, title=f"grey of {name}", needs=needs, best=0, meaning="mean grey value",
                reading=lambda: Reading(name="grey", facts={"version": 1}, load=lambda _: read, of=of),
                score=lambda samples, _: mean_score(samples.whole("grey")),
            )  # fmt: skip

        monkeypatch.setattr(reading_module, "find_measure", lambda name: {n: make(n) for n in names}[name])
        return looked

    return put


# ---------------------------------------------------------------------------------------------------------------- sets


class TestSets:
    def test_a_folder_has_its_images_in_the_order_of_their_numbers(self, tmp_path):
        images = random_images(0, 12)
        for index, pixels in enumerate(images):
            save_png(tmp_path / f"img_{index}.png", pixels)
        samples = open_samples(tmp_path)
        assert samples.names == [f"img_{index}.png" for index in range(12)]
        assert not samples.is_video
        for index in (0, 2, 10, 11):
            np.testing.assert_array_equal(samples.read(index), images[index : index + 1])

    def test_hidden_and_other_files_are_no_samples(self, tmp_path):
        write_images(tmp_path, random_images(0, 2))
        before = open_samples(tmp_path).digest()
        for name in (
            ".hidden.png",
            "._000000.png",
            ".DS_Store",
            "Thumbs.db",
            "settings.json",
            "notes.txt",
            ".x.partial.png",
        ):
            (tmp_path / name).write_bytes(b"no image")
        (tmp_path / "latents").mkdir()
        samples = open_samples(tmp_path)
        assert samples.names == ["000000.png", "000001.png"]
        assert samples.digest() == before

    def test_suffixes_in_any_case(self, tmp_path):
        save_png(tmp_path / "a.png", random_images(0)[0])
        (tmp_path / "a.png").rename(tmp_path / "A.PNG")
        assert open_samples(tmp_path).names == ["A.PNG"]

    def test_grey_and_transparent_images_are_rgb_on_white(self, tmp_path):
        from PIL import Image

        Image.fromarray(np.full((3, 4), 7, np.uint8)).save(tmp_path / "grey.png")
        clear = np.zeros((3, 4, 4), np.uint8)
        clear[..., 3] = [0, 255, 0, 255]
        Image.fromarray(clear).save(tmp_path / "rgba.png")
        samples = open_samples(tmp_path)
        assert (samples.read(0) == 7).all()
        assert samples.read(0).shape == (1, 3, 4, 3)
        np.testing.assert_array_equal(samples.read(1)[0, 0, :, 0], [255, 0, 255, 0])

    def test_videos_are_read_to_their_last_frame(self, tmp_path):
        samples = open_samples(write_videos(tmp_path))
        assert samples.is_video
        np.testing.assert_array_equal(samples.read(2), random_images(2, 4, 32, 48))
        assert read_video(tmp_path / "a cat-0.mp4")[1] == 8

    def test_what_is_no_set_is_refused_by_name(self, tmp_path):
        with pytest.raises(UserError, match="holds neither images"):
            open_samples(tmp_path)
        with pytest.raises(UserError, match=r"gone is neither a folder"):
            open_samples(tmp_path / "gone")
        (tmp_path / "one.png").touch()
        with pytest.raises(UserError, match=r"one\.png is neither a folder"):
            open_samples(tmp_path / "one.png")
        (tmp_path / "two.mp4").touch()
        with pytest.raises(UserError, match=r"images and videos \(one\.png, two\.mp4\)"):
            open_samples(tmp_path)

    @pytest.mark.parametrize(
        "put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone.png"), lambda path: path.symlink_to(path)]
    )
    def test_what_is_called_like_a_sample_and_is_no_file_is_refused(self, tmp_path, put):
        """Nothing of it is in the digest, so that shards of the others were taken for those of the set."""
        write_images(tmp_path, random_images(0, 2))
        put(tmp_path / "000007.png")
        with pytest.raises(UserError, match=r"holds 000007\.png: no files, or links to none"):
            open_samples(tmp_path)

    def test_a_run_s_own_folder_and_two_images_of_a_sample_are_refused(self, tmp_path):
        write_images(tmp_path, random_images(0, 2))
        (tmp_path / "000001.jpg").write_bytes(b"")
        with pytest.raises(UserError, match=r"several files of one name, 000001\.jpg, 000001\.png; keep one"):
            open_samples(tmp_path)
        (tmp_path / "record.json").write_text("{}")
        with pytest.raises(UserError, match="is the folder of a run, whose samples are in folders of their own"):
            open_samples(tmp_path)

    def test_another_order_or_content_is_another_digest(self, tmp_path):
        images = random_images(0, 2)
        one, same, turned = (
            write_images(tmp_path / n, i) for n, i in (("a", images), ("b", images), ("c", images[::-1]))
        )
        digests = [open_samples(folder).digest() for folder in (one, same, turned)]
        assert digests[0] == digests[1] != digests[2]


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_images_are_those_that_were_saved(self, tmp_path, save):
        images = random_images(0, 5)
        save(tmp_path / "a.npz", arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
        batch = open_samples(tmp_path / "a.npz")
        assert isinstance(batch, NpzBatch)
        assert isinstance(batch.images, np.memmap) == (save is np.savez), "only what is stored as it is can be mapped"
        assert batch.names == [f"a.npz[{index}]" for index in range(5)]
        np.testing.assert_array_equal(np.concatenate([batch.read(index) for index in range(5)]), images)
        np.testing.assert_array_equal(batch.statistics("mu", "sigma")[1], np.eye(3))
        assert batch.statistics("mu_s", "sigma_s") is None

    def test_fortran_order_other_header_versions_and_extra_fields_are_read(self, tmp_path):
        images = random_images(0, 5)
        np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(images))
        np.testing.assert_array_equal(open_samples(tmp_path / "f.npz").read(3)[0], images[3])
        with zipfile.ZipFile(tmp_path / "v2.npz", "w") as archive:
            info = zipfile.ZipInfo("arr_0.npy")
            info.extra = b"\x99\x99\x04\x00abcd"  # of a program of its own
            with archive.open(info, "w") as file:
                np.lib.format.write_array(file, images, version=(2, 0))
        np.testing.assert_array_equal(open_samples(tmp_path / "v2.npz").read(3)[0], images[3])

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": random_images(0)}, "arr_0"),
            ({"arr_0": random_images(0).astype(np.float32)}, r"\(4, 12, 14, 3\) of float32"),
            ({"arr_0": random_images(0)[..., :1]}, r"\(4, 12, 14, 1\) of uint8"),
            ({"arr_0": random_images(0)[0]}, r"\(12, 14, 3\) of uint8"),
            ({"arr_0": random_images(0)[:0]}, r"\(0, 12, 14, 3\) of uint8"),
            ({"arr_0": np.array([random_images(0), "code"], dtype=object)}, "is no batch of images|of object"),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path, arrays, message):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(UserError, match=message):
            open_samples(tmp_path / "x.npz")

    @pytest.mark.parametrize("kept", [0, 1, 100, 700, -30])
    def test_a_cut_file_is_refused(self, tmp_path, kept):
        path = tmp_path / "x.npz"
        np.savez(path, arr_0=random_images(0))
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(UserError, match=r"x\.npz is no batch of images"):
            open_samples(path)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_damaged_pixels_are_refused(self, tmp_path, save):
        path = tmp_path / "x.npz"
        save(path, arr_0=random_images(0))
        data = bytearray(path.read_bytes())
        data[900:910] = bytes(10)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.npz is no batch of images: Bad CRC-32"):
            open_samples(path)


# ------------------------------------------------------------------------------------------------------------- readings


class TestReadings:
    def test_scores_are_means_over_samples_with_their_interval(self, image_folder, paired_folder, tmp_path):
        task = Task(samples=open_samples(image_folder), pairs=open_samples(paired_folder))
        found = score(task, ["psnr"], tmp_path, ALONE, quiet=True)["psnr"]
        noisy = random_images(0, 120) ^ random_images(1, 120) % 8
        expected = mean_interval(psnr(random_images(0, 120), noisy))
        assert found["value"] == pytest.approx(expected["mean"], rel=1e-12)
        assert (found["low"], found["high"]) == pytest.approx((expected["low"], expected["high"]), rel=1e-12)
        assert (found["num"], found["title"]) == (120, "PSNR dB")

    def test_a_folder_and_a_batch_of_the_same_images_score_alike(self, image_folder, paired_folder, tmp_path):
        np.savez(tmp_path / "a.npz", random_images(0, 120))
        np.savez_compressed(
            tmp_path / "b.npz", np.concatenate([open_samples(paired_folder).read(i) for i in range(120)])
        )
        values = [
            score(Task(samples=open_samples(a), pairs=open_samples(b)), ["psnr"], tmp_path / "work", ALONE, quiet=True)
            for a, b in ((image_folder, paired_folder), (tmp_path / "a.npz", tmp_path / "b.npz"))
        ]
        assert values[0] == values[1]

    def test_a_reading_is_taken_once_for_all_measures_and_runs(self, image_folder, tmp_path, measured):
        looked = measured("one", "other")
        task = Task(samples=open_samples(image_folder))
        first = score(task, ["one", "other"], tmp_path, ALONE, quiet=True)
        assert looked == [range(0, 50), range(50, 100), range(100, 120)]
        assert first["one"]["value"] == first["other"]["value"] == pytest.approx(random_images(0, 120).mean())
        assert first["other"]["title"] == "grey of other"
        assert score(task, ["other"], tmp_path, ALONE, quiet=True)["other"] == first["other"]
        assert len(looked) == 3, "nothing was read again"

    def test_psnr_and_the_worst_frame_share_a_reading(self, tmp_path):
        task = Task(
            samples=open_samples(write_videos(tmp_path / "a")),
            pairs=open_samples(write_videos(tmp_path / "b", names="x-{}")),
        )
        assert find_measure("psnr").reading().name == find_measure("psnr-worst").reading().name
        score(task, ["psnr", "psnr-worst"], tmp_path / "work", ALONE, quiet=True)
        assert sorted(path.name.rpartition("-")[0] for path in (tmp_path / "work").iterdir()) == ["pixels", "psnr"]

    def test_other_prompts_contents_and_facts_are_other_readings(self, tmp_path, measured):
        folder = write_images(tmp_path / "a", random_images(0))
        looked = measured("grey", needs=frozenset({"prompts"}), of=("prompts",))

        def run(prompts: list[str]) -> None:
            score(Task(samples=open_samples(folder), prompts=prompts), ["grey"], tmp_path / "work", ALONE, quiet=True)

        run(list("abcd"))
        run(list("abcd"))
        assert len(looked) == 1
        run(list("abce"))
        assert len(looked) == 2
        save_png(folder / "000003.png", random_images(9)[0])
        run(list("abce"))
        assert len(looked) == 3
        claims = [json.loads(path.read_text()) for path in (tmp_path / "work").glob("grey-*/claim.json")]
        assert sorted("".join(claim["prompts"]) for claim in claims) == ["abcd", "abce", "abce"]

    def test_prompts_are_no_part_of_readings_that_do_not_look_at_them(self, image_folder, tmp_path, measured):
        looked = measured("grey")
        for prompts in (None, ["x"] * 120):
            score(Task(samples=open_samples(image_folder), prompts=prompts), ["grey"], tmp_path, ALONE, quiet=True)
        assert len(looked) == 3

    def test_a_reference_is_read_once_for_the_sets_compared_with_it(
        self, image_folder, paired_folder, tmp_path, monkeypatch
    ):
        looked = []

        def read(shard: Shard) -> Mapping[str, np.ndarray]:
            looked.append(shard.task.samples.path)
            return {"grey": np.array([frames.mean() for frames in shard.frames])}

        def difference(samples: Readout, reference: Readout | None) -> dict:
            return {"value": float(samples.whole("grey").mean() - reference.whole("grey").mean())}

        measure = Measure(
            name="apart", title="apart", needs=frozenset({"reference"}), best=0, meaning="",
            reading=lambda: Reading(name="grey", facts={}, load=lambda _: read), score=difference,
        )  # fmt: skip
        monkeypatch.setattr(reading_module, "find_measure", lambda _: measure)
        reference = open_samples(image_folder)
        for folder in (paired_folder, image_folder):
            task = Task(samples=open_samples(folder), reference=reference)
            found = score(task, ["apart"], tmp_path, ALONE, quiet=True)["apart"]
        assert found["value"] == 0, "a set against itself"
        assert looked == [paired_folder] * 3 + [image_folder] * 3

    @pytest.mark.parametrize("damage", [b"", b"no tensors", None])
    def test_a_damaged_shard_is_read_anew(self, image_folder, tmp_path, measured, damage):
        looked = measured("grey")
        task = Task(samples=open_samples(image_folder))
        whole = score(task, ["grey"], tmp_path, ALONE, quiet=True)
        (shard,) = tmp_path.glob("grey-*/000050.safetensors")
        shard.write_bytes(shard.read_bytes()[:-8] if damage is None else damage)
        assert score(task, ["grey"], tmp_path, ALONE, quiet=True) == whole
        assert looked[3:] == [range(50, 100)]

    def test_what_is_not_finite_is_refused_with_the_samples_named(self, image_folder, tmp_path, monkeypatch):
        reading = Reading(name="x", facts={}, load=lambda _: lambda shard: {"x": np.full(len(shard.indices), np.nan)})
        with pytest.raises(UserError, match=r"x of a sample among 000000\.png to 000049\.png is not finite"):
            read_samples(reading, Task(samples=open_samples(image_folder)), tmp_path, ALONE, quiet=True)

    def test_videos_are_few_to_a_shard(self, tmp_path):
        samples = open_samples(write_videos(tmp_path / "a", count=5))
        readout = read_samples(PIXELS, Task(samples=samples), tmp_path / "work", ALONE, quiet=True)
        assert [len(part) for part in readout.shards("digest")] == [4, 1]

    def test_a_stand_in_is_named_in_the_title(self, image_folder, tmp_path, monkeypatch):
        measure = Measure(
            name="x", title="FD", best=0, meaning="",
            reading=lambda: Reading(
                name="x", facts={"stand_in_weights": True}, load=lambda _: lambda shard: {"x": np.zeros(len(shard.indices))}
            ),
            score=lambda samples, _: mean_score(samples.whole("x")),
        )  # fmt: skip
        monkeypatch.setattr(reading_module, "find_measure", lambda _: measure)
        found = score(Task(samples=open_samples(image_folder)), ["x"], tmp_path, ALONE, quiet=True)
        assert found["x"]["title"] == "FD (stand-in weights)"


# --------------------------------------------------------------------------------------------------------------- faults


class TestFaults:
    def test_all_images_that_cannot_be_read_are_named_and_the_others_kept(self, tmp_path, measured):
        folder = write_images(tmp_path / "a", random_images(0, 120))
        for index, change in ((3, lambda data: data[:60]), (7, lambda data: b""), (101, lambda data: data[:-30])):
            path = folder / f"{index:06d}.png"
            path.write_bytes(change(path.read_bytes()))
        measured("grey")
        task = Task(samples=open_samples(folder))
        with pytest.raises(UserError) as told:
            score(task, ["grey"], tmp_path / "work", ALONE, quiet=True)
        for name in ("000003.png", "000007.png", "000101.png"):
            assert name in str(told.value)
        assert "nothing is scored until all 120 samples can be read" in str(told.value)
        assert [path.name for path in (tmp_path / "work").glob("*/*.safetensors")] == ["000050.safetensors"]
        for index in (3, 7, 101):
            save_png(folder / f"{index:06d}.png", random_images(0, 120)[index])
        found = score(Task(samples=open_samples(folder)), ["grey"], tmp_path / "work", ALONE, quiet=True)
        assert found["grey"]["value"] == pytest.approx(random_images(0, 120).mean())

    @pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.98])
    def test_a_cut_video_is_named(self, tmp_path, share):
        folder = write_videos(tmp_path / "a", frames=12)
        path = folder / "a cat-1.mp4"
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=r"a cat-1\.mp4 is cut or damaged"):
            read_samples(PIXELS, Task(samples=open_samples(folder)), tmp_path / "work", ALONE, quiet=True)

    @pytest.mark.slow
    def test_damage_inside_a_video_is_found_where_opencv_passes_over_it(self, tmp_path):
        """Of 16 places, 13 and 1 when this was written: pixels of their own frames are all that some bytes move."""
        y, x = np.mgrid[:64, :96]
        frames = [
            np.stack([128 + 100 * np.sin((x + 3 * t) / 9 + c) * np.cos(y / 11) for c in range(3)], -1)
            for t in range(24)
        ]
        path = tmp_path / "a-0.mp4"
        save_mp4(path, np.stack(frames).astype(np.uint8), 8, quality=9)
        whole, found = path.read_bytes(), {"opencv": 0, "here": 0}
        for place in range(16):
            at = (2 + place) * len(whole) // 20
            path.write_bytes(whole[:at] + bytes(32) + whole[at + 32 :])
            for name, read in (("opencv", lambda: read_video(path)), ("here", lambda: open_samples(tmp_path).read(0))):
                try:
                    read()
                except UserError:
                    found[name] += 1
        assert found["here"] > found["opencv"] + 5

    def test_equal_samples_are_named_unless_they_may_be(self, tmp_path, measured):
        images = random_images(0)
        images[2] = images[0]
        folder = write_images(tmp_path / "a", images)
        task = Task(samples=open_samples(folder))
        measured("grey")
        with pytest.raises(UserError, match=r"equal to the last pixel: 000000\.png = 000002\.png; "):
            score(task, ["grey"], tmp_path / "work", ALONE, quiet=True)
        found = score(task, ["grey"], tmp_path / "work", ALONE, allow_duplicates=True, quiet=True)
        assert found["grey"]["num"] == 4

    def test_counts_and_kinds_must_agree(self, image_folder, tmp_path):
        samples = open_samples(image_folder)
        few = open_samples(write_images(tmp_path / "few", random_images(0, 3)))
        with pytest.raises(UserError, match="has 120 samples and there are 3 pairs"):
            Task(samples=samples, pairs=few)
        with pytest.raises(UserError, match="has 3 samples and there are 2 prompts"):
            Task(samples=few, prompts=["a", "b"])
        with pytest.raises(UserError, match=r"holds images and .* videos; compare like with like"):
            Task(samples=few, reference=open_samples(write_videos(tmp_path / "v")))

    def test_pairs_are_of_one_name_or_number(self, tmp_path):
        ours = open_samples(write_images(tmp_path / "a", random_images(0, 11)))
        for index, pixels in enumerate(random_images(0, 11)):
            save_png(tmp_path / "b" / f"img_{index}.png", pixels)
        Task(samples=ours, pairs=open_samples(tmp_path / "b"))
        (tmp_path / "b" / "img_4.png").rename(tmp_path / "b" / "img_40.png")
        with pytest.raises(UserError, match=r"000004\.png would be compared with .*img_5\.png"):
            Task(samples=ours, pairs=open_samples(tmp_path / "b"))

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (["a cat-0", "a dog-0"], ["a cat-0", "an emu-0"]),  # the first ones of other prompts
            (["a cat-0", "a dog-1"], ["a cat-0", "an emu-1"]),
            (["000001_512", "000002_512"], ["000001_512", "000003_512"]),  # of one size
        ],
    )
    def test_a_number_that_is_not_the_sample_s_makes_no_pair(self, tmp_path, ours, theirs):
        for folder, names in (("a", ours), ("b", theirs)):
            for name, pixels in zip(names, random_images(0), strict=False):
                save_png(tmp_path / folder / f"{name}.png", pixels)
        with pytest.raises(UserError, match=rf"{ours[1]}\.png would be compared with .*{theirs[1]}\.png"):
            Task(samples=open_samples(tmp_path / "a"), pairs=open_samples(tmp_path / "b"))

    def test_pairs_of_other_sizes_are_named(self, tmp_path):
        ours = open_samples(write_images(tmp_path / "a", random_images(0)))
        theirs = open_samples(write_images(tmp_path / "b", random_images(1, height=13)))
        with pytest.raises(
            UserError, match=r"a/000000\.png is \(1, 12, 14, 3\) and .*b/000000\.png is \(1, 13, 14, 3\)"
        ):
            score(Task(samples=ours, pairs=theirs), ["psnr"], tmp_path / "work", ALONE, quiet=True)

    def test_what_a_measure_lacks_is_told(self, image_folder, tmp_path):
        task = Task(samples=open_samples(image_folder))
        assert check_task(task, ["psnr", "flicker"]) == ["psnr needs pairs", "flicker needs video"]
        with pytest.raises(UserError, match="psnr needs pairs; emoji-score needs prompts"):
            score(task, ["psnr", "emoji-score"], tmp_path, ALONE)
        with pytest.raises(UserError, match=r"measure 'psnrr' is unknown.*did you mean 'psnr'"):
            check_task(task, ["psnrr"])
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_loses_nothing_that_was_read(self, image_folder, tmp_path, measured, monkeypatch):
        looked = measured("grey")
        save, saved = reading_module.save_tensors, []

        def save_some(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
            if len(saved) == 4:  # the third shard of pixels is there, and the first of grey values
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            saved.append(path)
            save(path, tensors)

        monkeypatch.setattr(reading_module, "save_tensors", save_some)
        task = Task(samples=open_samples(image_folder))
        with pytest.raises(OSError, match="No space left on device"):
            score(task, ["grey"], tmp_path, ALONE, quiet=True)
        kept = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
        assert kept.keys() == set(saved)
        monkeypatch.setattr(reading_module, "save_tensors", save)
        looked.clear()
        found = score(task, ["grey"], tmp_path, ALONE, quiet=True)
        assert looked == [range(50, 100), range(100, 120)]
        assert {path: path.read_bytes() for path in kept} == kept
        assert found["grey"]["value"] == pytest.approx(random_images(0, 120).mean())
        assert not list(tmp_path.rglob("*.partial*"))

    def test_a_command_on_a_full_disk_says_what_to_do(
        self, image_folder, paired_folder, tmp_path, load_command, monkeypatch, capsys
    ):
        from seerkit.command.cli import run_command

        def full(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(reading_module, "save_tensors", full)
        argv = [str(image_folder), "--measures", "psnr", "--pairs", str(paired_folder), "--work", str(tmp_path)]
        with pytest.raises(SystemExit) as ended:
            run_command(load_command("eval/score.py").main, argv)
        assert ended.value.code == 2
        assert "free some space, or write elsewhere; what was finished is kept" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- prompts


class TestPrompts:
    def samples(self, *names: str) -> SimpleNamespace:
        return SimpleNamespace(names=list(names), path=Path("set"))

    def test_names_that_end_in_a_number_have_their_prompts(self):
        found = prompts_in_names(self.samples("a cat. It sleeps-0.mp4", "a well-lit street-12.mp4"))
        assert found == ["a cat. It sleeps", "a well-lit street"]
        with pytest.raises(UserError, match=r"not called PROMPT-NUMBER: 000000\.mp4"):
            prompts_in_names(self.samples("000000.mp4", "a-1.mp4"))

    def test_a_list_is_followed_by_name_or_in_order(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_text("a dog\na cat\n")
        assert listed_prompts(self.samples("a cat-0.mp4", "a cat-1.mp4", "a dog-0.mp4"), path) == [
            "a cat",
            "a cat",
            "a dog",
        ]
        assert listed_prompts(self.samples("0.png", "1.png"), path) == ["a dog", "a cat"]
        with pytest.raises(UserError, match="2 prompts and set 3 samples"):
            listed_prompts(self.samples("0.png", "1.png", "2.png"), path)

    def test_a_list_may_have_names_of_its_own(self, tmp_path):
        path = tmp_path / "list.json"
        write_json(path, [{"prompt_en": "a long text on dogs", "name": "dog"}, {"prompt_en": "cat"}])
        assert listed_prompts(self.samples("cat-0.mp4", "dog-0.mp4"), path) == ["cat", "a long text on dogs"]

    def test_a_record_is_followed_by_number(self, tmp_path):
        write_json(tmp_path / "record.json", {"settings": {"prompts": ["a", "b", "c"]}})
        assert recorded_prompts(self.samples("000000.png", "000002.png"), tmp_path / "record.json") == ["a", "c"]
        assert recorded_prompts(self.samples("b-0.mp4", "c-0.mp4"), tmp_path / "record.json") == ["b", "c"]
        with pytest.raises(UserError, match=r"has 3 prompts, and set samples 000003"):
            recorded_prompts(self.samples("000003.png"), tmp_path / "record.json")
        with pytest.raises(UserError, match=r"has no prompt for x-0\.mp4"):
            recorded_prompts(self.samples("x-0.mp4"), tmp_path / "record.json")

    def test_classes_are_taken_from_the_claim(self, tmp_path):
        write_json(tmp_path / "record.json", {"settings": {"model": "dit"}})
        with pytest.raises(UserError, match="lists no prompts"):
            recorded_prompts(self.samples("000000.png"), tmp_path / "record.json")
        write_json(tmp_path / "state" / "set" / "claim.json", {"prompts": ["bag", "coat"]})
        for name in ("record.json", "state/set/claim.json"):
            assert recorded_prompts(self.samples("000001.png"), tmp_path / name) == ["coat"]

    def test_a_batch_is_followed_in_order(self, tmp_path):
        np.savez(tmp_path / "7.npz", random_images(0, 2))
        write_json(tmp_path / "record.json", {"prompts": ["a", "b", "c"]})
        assert recorded_prompts(open_samples(tmp_path / "7.npz"), tmp_path / "record.json") == ["a", "b"]


# -------------------------------------------------------------------------------------------------------------- command


class TestCommand:
    @pytest.fixture
    def run(self, load_command, capsys) -> Callable[..., str]:
        """What the command prints."""
        command = load_command("eval/score.py")

        def run(*argv: object) -> str:
            command.main([str(word) for word in argv])
            return capsys.readouterr().out

        return run

    def test_scores_are_shown_and_recorded(self, image_folder, paired_folder, tmp_path, run):
        argv = [image_folder, "--measures", "psnr", "ssim", "--pairs", paired_folder, "--work", tmp_path / "work"]
        shown = run(*argv, "--out", tmp_path / "score.json")
        record = json.loads((tmp_path / "score.json").read_text())
        assert record["scores"].keys() == {"psnr", "ssim"}
        assert record["samples"] == {
            "path": str(image_folder), "digest": open_samples(image_folder).digest(), "num_samples": 120,
        }  # fmt: skip
        for name, digits in (("psnr", 2), ("ssim", 4)):
            assert f"{record['scores'][name]['value']:.{digits}f}" in shown
        assert "Wang et al. 2004" in shown
        again = json.loads(run(*argv, "--json"))
        assert again["scores"] == record["scores"]

    def test_a_plan_says_what_is_missing(self, image_folder, tmp_path, run):
        told = json.loads(run(image_folder, "--measures", "psnr", "--work", tmp_path / "work", "--dry-run"))
        assert told["missing"] == ["psnr needs pairs"]
        assert not (tmp_path / "work").exists()

    def test_prompts_of_a_record_are_told_by_their_digest(self, tmp_path, run):
        folder = write_images(tmp_path / "a", random_images(0, 2, 32, 32))
        (tmp_path / "prompts.txt").write_text("red apple, 3d render\nred apple, noto\n")
        record = json.loads(
            run(
                folder,
                "--measures",
                "emoji-score",
                "--prompt-file",
                tmp_path / "prompts.txt",
                "--work",
                tmp_path / "w",
                "--json",
            )
        )
        expected = subprocess.run(["sha256sum", tmp_path / "prompts.txt"], capture_output=True, text=True, check=True)
        assert record["prompts"]["sha256"] == expected.stdout.split()[0]

    def test_other_counts_are_refused(self, image_folder, run):
        with pytest.raises(UserError, match="has 120 samples, --num-samples asks for 121"):
            run(image_folder, "--measures", "psnr", "--pairs", image_folder, "--num-samples", 121)

    def test_all_measures_are_listed(self, run):
        shown = run("--list")
        assert [line.split()[0] for line in shown.splitlines()[2 : 2 + len(NAMES)]] == list(NAMES)

    def test_every_measure_says_what_it_is(self):
        for measure in map(find_measure, NAMES):
            assert measure.needs <= {"reference", "pairs", "prompts", "video", "image"}
            assert measure.best in (-1, 0, 1)
            assert len(measure.meaning) > 50
            assert measure.title.split("(")[0].strip().lower()[:4] in measure.meaning.lower()


# ---------------------------------------------------------------------------------------------------------------- kills

KILLS = 20


@pytest.fixture(scope="module")
def many_images(tmp_path_factory) -> list[str]:
    """Arguments of a run of 30 shards."""
    images = random_images(0, 500)
    own = write_images(tmp_path_factory.mktemp("many"), images)
    pairs = write_images(tmp_path_factory.mktemp("many-pairs"), images ^ random_images(1, 500) % 16)
    return [str(own), "--measures", "psnr", "ssim", "--pairs", str(pairs), "--json"]


@pytest.fixture(scope="module")
def undisturbed(many_images, run_script, tmp_path_factory) -> tuple[dict, dict[str, bytes]]:
    """The scores of that run, and its shards."""
    work = tmp_path_factory.mktemp("work")
    done = run_script("eval/score.py", *many_images, "--work", work)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["scores"], shards_in(work)


def shards_in(work: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*.safetensors") if path.name[0] != "."
    }


def num_shards(work: Path) -> int:
    return sum(path.name[0] != "." for path in work.glob("*/*.safetensors"))


def run_and_kill(argv: list[str], work: Path, draw: random.Random, processes: int) -> bool:
    """Start a run and kill it, or one of its processes, when it has read a little more; False if it came to its end before."""
    pids = work.parent / "pids"
    shutil.rmtree(pids, ignore_errors=True)
    pids.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = ROOT / "tests/evaluation/score_slowly.py"
    before, more = num_shards(work), draw.choice([0, 0, 1])
    started = subprocess.Popen(
        [sys.executable, *launcher, str(script), str(pids), *argv, "--work", str(work)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while started.poll() is None and (len(list(pids.iterdir())) < processes or num_shards(work) <= before + more):
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.1))
    alive = [int(path.name) for path in pids.iterdir() if Path("/proc", path.name).exists()]
    killed = started.poll() is None and len(alive) == processes
    if killed:
        for pid in alive if draw.random() < 0.5 else [draw.choice(alive)]:
            os.kill(pid, signal.SIGKILL)
    started.wait()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(2400)  # twenty starts of one or two processes, on a busy machine
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_killed_twenty_times_ends_with_the_same_scores(
    processes, many_images, undisturbed, run_script, tmp_path
):
    scores, shards = undisturbed
    assert len(shards) == 3 * 500 // SHARD
    work, draw = tmp_path / "work", random.Random(processes)
    work.mkdir()
    kills = 0
    while kills < KILLS:
        if run_and_kill(many_images, work, draw, processes):
            kills += 1
        else:  # it came to its end, whose shards are taken away again
            assert shards_in(work) == shards
            for name in draw.sample(sorted(shards), len(shards) // 2):
                (work / name).unlink()
    done = run_script("eval/score.py", *many_images, "--work", work, processes=processes)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"] == scores, "to the last bit"
    assert shards_in(work) == shards
    assert not list(work.rglob("*.partial*"))


@pytest.mark.slow
def test_processes_report_a_damaged_image_once(run_script, tmp_path):
    folder = write_images(tmp_path / "a", random_images(0, 120))
    (folder / "000060.png").write_bytes(b"no image")
    argv = [folder, "--measures", "psnr", "--pairs", folder, "--work", tmp_path / "work"]
    done = run_script("eval/score.py", *argv, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("nothing is scored until all 120 samples can be read") == 1
    assert len(shards_in(tmp_path / "work")) == 2
