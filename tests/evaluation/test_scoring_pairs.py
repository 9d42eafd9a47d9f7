"""PSNR, SSIM, LPIPS and the Lite0 distance of sets, against closed forms and torchmetrics."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_dic import UserError
from evaluation.metrics import psnr, ssim
from evaluation.perceptual import lite0_distance, unit_features
from evaluation.scoring import pairs as pairs_module
from evaluation.scoring.measures import find_measure
from evaluation.scoring.pairs import LEAST_SIDE, TRUNKS, load_lpips
from evaluation.scoring.read import Task, check_task, score
from evaluation.scoring.samples import open_samples
from evaluation.scoring.weights import STAND_INS, WeightFile
from seerkit.devices.distributed import World
from seerkit.io.media import save_mp4, save_png
from seerkit.weights.checkpoints import Published

ALONE = World(0, 1, torch.device("cpu"))


def images_and_noisy(
    count: int = 3, height: int = 40, width: int = 36, noise: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return np.clip(images + draw.integers(-noise, noise + 1, images.shape), 0, 255).astype(np.uint8), images


def write_images(folder: Path, images: np.ndarray) -> Path:
    for index, pixels in enumerate(images):
        save_png(folder / f"{index:06d}.png", pixels)
    return folder


def task_of(tmp_path: Path, ours: np.ndarray, theirs: np.ndarray) -> Task:
    folders = [write_images(tmp_path / name, images) for name, images in (("ours", ours), ("theirs", theirs))]
    return Task(samples=open_samples(folders[0]), pairs=open_samples(folders[1]))


def video_task(tmp_path: Path, ours: list[np.ndarray], theirs: list[np.ndarray]) -> Task:
    for name, videos in (("ours", ours), ("theirs", theirs)):
        for index, frames in enumerate(videos):
            save_mp4(tmp_path / name / f"{index}.mp4", frames, 8, quality="lossless")
    return Task(samples=open_samples(tmp_path / "ours"), pairs=open_samples(tmp_path / "theirs"))


def scored(task: Task, name: str, tmp_path: Path) -> dict:
    return score(task, [name], tmp_path / "work", ALONE, quiet=True)[name]


# ------------------------------------------------------------------------------------------------------- PSNR and SSIM


def test_psnr_is_the_mean_over_images_that_differ(tmp_path):
    theirs = np.full((3, 16, 16, 3), 100, np.uint8)
    ours = theirs + np.array([1, 0, 5], np.uint8).reshape(3, 1, 1, 1)
    ours[1, 0, 0, 0] = 100  # equal to its pair, and to no other sample
    found = score(
        task_of(tmp_path, ours, theirs), ["psnr"], tmp_path / "work", ALONE, allow_duplicates=True, quiet=True
    )["psnr"]
    expected = [20 * math.log10(255 / d) for d in (1, 5)]
    assert found["value"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert found["pooled_db"] == pytest.approx(10 * math.log10(255**2 * 3 / 26), rel=1e-12)
    assert (found["num"], found["num_identical"], found["num_identical_frames"]) == (3, 1, 1)


def test_equal_sets_have_no_psnr_and_an_ssim_of_one(tmp_path):
    images, _ = images_and_noisy()
    task = task_of(tmp_path, images, images)
    found = scored(task, "psnr", tmp_path)
    assert (found["value"], found["note"], found["num_identical"]) == (None, "identical", 3)
    assert scored(task, "ssim", tmp_path)["value"] == pytest.approx(1, abs=1e-12)


def test_a_video_counts_frame_by_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 200, (2, 4, 32, 48, 3), dtype=np.uint8)
    ours = frames.copy()
    ours[0, 1:] += np.array([1, 2, 10], np.uint8).reshape(3, 1, 1, 1)  # its first frame is equal
    ours[1] += 3
    task = video_task(tmp_path, list(ours), list(frames))
    db = lambda d: 20 * math.log10(255 / d)  # noqa: E731
    first, second = np.mean([db(1), db(2), db(10)]), db(3)
    found = scored(task, "psnr", tmp_path)
    assert found["value"] == pytest.approx((first + second) / 2)
    assert (found["num_identical"], found["num_identical_frames"]) == (0, 1)
    assert scored(task, "psnr-worst", tmp_path)["value"] == pytest.approx((db(10) + db(3)) / 2)
    expected = [ssim(a, b).mean() for a, b in zip(ours, frames, strict=True)]
    assert scored(task, "ssim", tmp_path)["value"] == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.slow
def test_psnr_and_ssim_of_a_set_are_torchmetrics(tmp_path, need):
    """PSNR within 1e-4 dB: torchmetrics sums in float32. Its SSIM pads the image, of which ours is the inside."""
    functional = need("torchmetrics.functional.image")
    ours, theirs = images_and_noisy()
    task = task_of(tmp_path, ours, theirs)
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (ours, theirs))
    expected = functional.peak_signal_noise_ratio(a, b, data_range=255.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert scored(task, "psnr", tmp_path)["value"] == pytest.approx(expected.item(), abs=1e-4)
    assert scored(task, "psnr", tmp_path)["value"] == pytest.approx(psnr(ours, theirs).mean(), rel=1e-12)
    _, full = functional.structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    inner = full[..., 5:-5, 5:-5] if full.shape[-1] == a.shape[-1] else full
    assert scored(task, "ssim", tmp_path)["value"] == pytest.approx(inner.mean().item(), rel=1e-6)


def test_images_too_small_for_a_window_are_named(tmp_path):
    ours, theirs = images_and_noisy(height=10)
    with pytest.raises(UserError, match=r"000000\.png is 10 x 36 pixels, and both sides must have at least 11"):
        scored(task_of(tmp_path, ours, theirs), "ssim", tmp_path)


# --------------------------------------------------------------------------------------------------------------- LPIPS


@pytest.fixture
def hub(tmp_path, monkeypatch, without_checkpoints) -> Path:
    """torch.hub's folder of checkpoints, empty, and no other place with weights."""
    without_checkpoints(STAND_INS)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def stand_in(hub, need, monkeypatch) -> Path:
    """A trunk with random weights under the published name."""
    need("lpips")
    models = need("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = models.alexnet(weights=None).features.state_dict()
    path = hub / TRUNKS["alex"].file.name
    torch.save({f"features.{name}": value for name, value in features.items()}, path)
    monkeypatch.setenv(STAND_INS, "1")
    return path


def test_a_missing_trunk_is_named_with_its_place_size_and_remedy(hub, tmp_path):
    ours, theirs = images_and_noisy(height=64, width=64)
    task = task_of(tmp_path, ours, theirs)
    (line,) = check_task(task, ["lpips"])
    assert line.startswith("lpips needs alexnet-owt-7be5be79.pth (233 MB), looked for in ")
    assert str(hub) in line
    assert "`curl -L --fail --create-dirs -o " in line
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth`" in line
    (line,) = check_task(task, ["lpips-vgg"])
    assert "vgg16-397923af.pth (528 MB)" in line
    with pytest.raises(UserError, match=r"lpips needs alexnet-owt-7be5be79\.pth"):
        scored(task, "lpips", tmp_path)


@pytest.mark.slow
def test_another_file_under_the_name_is_refused(stand_in, tmp_path, monkeypatch):
    ours, theirs = images_and_noisy(height=64, width=64)
    task = task_of(tmp_path, ours, theirs)
    assert find_measure("lpips").missing() == []
    assert scored(task, "lpips", tmp_path)["title"] == "LPIPS (AlexNet) (stand-in weights)"
    monkeypatch.delenv(STAND_INS)
    with pytest.raises(
        UserError, match=r"is another file: its sha256 begins with [0-9a-f]{8}; fetch it anew with `curl"
    ):
        scored(task, "lpips", tmp_path)
    with pytest.raises(UserError, match="is another file"):
        TRUNKS["alex"].facts()


def test_a_file_is_known_by_the_beginning_of_its_digest(hub):
    (hub / "a.bin").write_bytes(b"abc")  # sha256 ba7816bf 8f01cfea …
    known = WeightFile(file=Published("a.bin", url="https://example.org/a.bin"), sha256="ba7816bf", size="3 B")
    assert known.missing() == []
    assert known.find() == hub / "a.bin"
    assert known.facts() == {"weights": "a.bin", "sha256": "ba7816bf8f01cfea"}
    (hub / "a.bin").write_bytes(b"abcd")
    assert "begins with 88d4266f" in known.missing()[0]


@pytest.mark.slow
def test_lpips_is_torchmetrics_on_the_same_trunk(stand_in, tmp_path, need):
    """Within 1e-6: both compute in float32, on [-1, 1] and on [0, 1]."""
    module = need("torchmetrics.functional.image.lpips")
    ours, theirs = images_and_noisy(height=64, width=72)
    found = scored(task_of(tmp_path, ours, theirs), "lpips", tmp_path)
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (ours, theirs))
    theirs_model = module._LPIPS(net="alex", pnet_rand=True).eval()
    theirs_model.net.load_state_dict(load_lpips("alex", stand_in).net.state_dict())
    expected = theirs_model(a, b, normalize=True).mean()
    assert expected > 0.001
    assert found["value"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_lpips_of_equal_images_is_zero_and_of_a_video_the_mean_over_frames(stand_in, tmp_path, monkeypatch):
    ours, theirs = images_and_noisy(count=5, height=32, width=48)
    task = task_of(tmp_path / "images", ours, theirs)
    of_images = scored(task, "lpips", tmp_path)
    monkeypatch.setattr(pairs_module, "BATCH_PIXELS", 2 * 32 * 48)  # two frames at a time
    of_video = scored(video_task(tmp_path / "video", [ours], [theirs]), "lpips", tmp_path)
    assert of_video["value"] == pytest.approx(of_images["value"], rel=1e-5)
    assert (of_images["num"], of_video["num"]) == (5, 1)
    assert scored(task_of(tmp_path / "equal", ours, ours), "lpips", tmp_path)["value"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_least_side_is_what_the_network_takes(net, need, tmp_path):
    lpips = need("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    side = LEAST_SIDE[net]
    assert model(*torch.rand(2, 1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        model(*torch.rand(2, 1, 3, side - 1, side))


@pytest.mark.slow
def test_smaller_images_are_named_and_nothing_is_resized(stand_in, tmp_path):
    ours, theirs = images_and_noisy(height=30)
    with pytest.raises(UserError, match=r"000000\.png is 30 x 36 pixels, and both sides must have at least 31"):
        scored(task_of(tmp_path, ours, theirs), "lpips", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no pickle", {"features.0.weight": torch.zeros(1)}])
def test_a_file_that_is_no_trunk_is_named(content, need, tmp_path):
    need("lpips")
    path = tmp_path / "trunk.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=r"trunk\.pth holds no trunk of LPIPS"):
        load_lpips("alex", path)


# --------------------------------------------------------------------------------------------------------------- Lite0


def test_the_lite0_distance_is_named_so_and_grows_with_noise(tmp_path):
    ours, theirs = images_and_noisy()
    found = scored(task_of(tmp_path, ours, theirs), "lite0", tmp_path)
    features = [unit_features(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (ours, theirs)]
    assert found["value"] == pytest.approx(lite0_distance(*features).mean().item(), rel=1e-5)
    assert found["title"] == "Lite0 distance"
    assert "LPIPS" not in find_measure("lite0").title
    noisier, _ = images_and_noisy(noise=90)
    assert scored(task_of(tmp_path / "more", noisier, theirs), "lite0", tmp_path)["value"] > found["value"]
