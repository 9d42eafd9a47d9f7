"""Measures of samples against their uncached counterparts, pair by pair: means over frames, then over samples.

An image is a video of one frame. Sizes are those of the files: nothing is resized, but where a measure says so.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache_dic import UserError
from evaluation.metrics import SSIM_WINDOW, psnr, ssim
from evaluation.scoring.measures import Measure, Reading, Score, mean_score, missing_packages
from evaluation.scoring.read import Readout, Shard
from evaluation.scoring.weights import WeightFile
from seerkit.weights.checkpoints import Published

BATCH_PIXELS = 2**23  # that a network looks at together, eight images of 1024 x 1024

Frames = np.ndarray  # (T, H, W, 3) uint8
PairReader = Callable[[Frames, Frames], Mapping[str, float]]


def read_pairs(shard: Shard, one: PairReader, least: int = 1) -> Mapping[str, np.ndarray]:
    """What `one` gives of the frames of each sample and of its counterpart, by name (B,) in float64.

    least: pixels that a side must have, or UserError names the sample.
    """
    rows = []
    for index, ours, theirs in zip(shard.indices, shard.frames, shard.pairs, strict=True):
        height, width = ours.shape[1:3]
        if min(height, width) < least:
            name = shard.task.samples.names[index]
            raise UserError(f"{name} is {height} x {width} pixels, and both sides must have at least {least}")
        rows.append(one(ours, theirs))
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def frame_batches(*videos: Frames) -> Iterator[list[Tensor]]:
    """Frames (b, 3, H, W) uint8 of videos of one shape, as many together as a network may look at."""
    size = max(1, BATCH_PIXELS // (videos[0].shape[1] * videos[0].shape[2]))
    tensors = [torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2) for frames in videos]
    return map(list, zip(*(tensor.split(size) for tensor in tensors), strict=True))


# ---------------------------------------------------------------------------------------------------------------- PSNR

IDENTICAL = -1.0  # decibels that no pair has


def _psnr_of(ours: Frames, theirs: Frames) -> Mapping[str, float]:
    """mean, worst: decibels over the frames that differ, IDENTICAL where none does. error: mean squared, of 255² for all."""
    decibels = np.concatenate([psnr(a[None], b[None]) for a, b in zip(ours, theirs, strict=True)])
    differ = decibels[np.isfinite(decibels)]
    return {
        "mean": float(differ.mean()) if differ.size else IDENTICAL,
        "worst": float(differ.min()) if differ.size else IDENTICAL,
        "error": float(np.mean(10 ** (-decibels / 10))),
        "identical": float(len(decibels) - len(differ)),
    }


def psnr_reading() -> Reading:
    return Reading(name="psnr", facts={}, load=lambda _: lambda shard: read_pairs(shard, _psnr_of), of=("pairs",))


def psnr_score(part: str) -> Callable[[Readout, Readout | None], Score]:
    def score(samples: Readout, _: Readout | None) -> Score:
        values, errors = samples.whole(part), samples.whole("error")
        differ = values[values != IDENTICAL]
        return {
            **(mean_score(differ) if differ.size else {"value": None, "note": "identical"}),
            "pooled_db": float(-10 * np.log10(errors.mean())) if differ.size else None,
            "num_identical": int(values.size - differ.size),
            "num_identical_frames": int(samples.whole("identical").sum()),
            "num": int(values.size),
        }

    return score


# ---------------------------------------------------------------------------------------------------------------- SSIM


def _ssim_of(ours: Frames, theirs: Frames) -> Mapping[str, float]:
    return {"ssim": float(np.mean([ssim(a[None], b[None])[0] for a, b in zip(ours, theirs, strict=True)]))}


def _ssim_reading() -> Reading:
    def load(_: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
        return lambda shard: read_pairs(shard, _ssim_of, SSIM_WINDOW)

    return Reading(name="ssim", facts={}, load=load, of=("pairs",))


# --------------------------------------------------------------------------------------------------------------- LPIPS

TRUNKS = {
    "alex": WeightFile(
        file=Published("alexnet-owt-7be5be79.pth", url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
        sha256="7be5be79",
        size="233 MB",
    ),
    "vgg": WeightFile(
        file=Published("vgg16-397923af.pth", url="https://download.pytorch.org/models/vgg16-397923af.pth"),
        sha256="397923af",
        size="528 MB",
    ),
}
"""torchvision's ImageNet weights of the networks that LPIPS stands on; the heads come with the package lpips."""
LEAST_SIDE = {"alex": 31, "vgg": 16}  # pixels for which the last layer has a place left


def load_lpips(net: str, path: Any) -> nn.Module:
    """The network of the package lpips, version 0.1, on the trunk in a file of torchvision's; UserError for another file."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it makes the trunk by torchvision's old argument
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.net.load_state_dict({name: state[_torchvision_name(name)] for name in model.net.state_dict()})
    except Exception as error:  # of files that are none of torch's almost anything
        raise UserError(f"{path} holds no trunk of LPIPS ({type(error).__name__}: {error}); fetch it anew") from error
    return model.eval().requires_grad_(False)


def _torchvision_name(name: str) -> str:
    """slice2.3.weight is features.3.weight: a slice keeps the numbers of the layers that it is made of."""
    return f"features.{name.partition('.')[2]}"


def _lpips_reading(net: str) -> Reading:
    from importlib.metadata import version

    trunk = TRUNKS[net]
    path = trunk.find()

    def load(device: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
        model = load_lpips(net, path).to(device)

        @torch.inference_mode()
        def one(ours: Frames, theirs: Frames) -> Mapping[str, float]:
            found = [
                model(*(frames.to(device).float() / 127.5 - 1 for frames in pair)).flatten().double().cpu()
                for pair in frame_batches(ours, theirs)
            ]
            return {"lpips": float(torch.cat(found).mean())}

        return lambda shard: read_pairs(shard, one, LEAST_SIDE[net])

    return Reading(name=f"lpips-{net}", facts={**trunk.facts(), "lpips": version("lpips")}, load=load, of=("pairs",))


def _lpips(name: str, net: str, network: str, more: str) -> Measure:
    return Measure(
        name=name,
        title=f"LPIPS ({network})",
        needs=frozenset({"pairs"}),
        best=-1,
        digits=4,
        missing=lambda: missing_packages("lpips", "torchvision") + TRUNKS[net].missing(),
        reading=lambda: _lpips_reading(net),
        score=lambda samples, _: mean_score(samples.whole("lpips")),
        meaning=f"LPIPS ({network}): distance of arXiv 1801.03924 by the package lpips, version 0.1 of its heads, pixels in "
        f"[-1, 1], mean over frames and samples. {more} Its heads were fitted on patches of 64 x 64: below that, from "
        f"{LEAST_SIDE[net]} pixels a side, it is computed as it is, and means less",
    )


# --------------------------------------------------------------------------------------------------------------- Lite0


def _lite0_reading() -> Reading:
    from evaluation.perceptual import lite0_distance, unit_features
    from evaluation.scorer import WEIGHTS
    from seerkit.io.files import content_digest

    def one(ours: Frames, theirs: Frames) -> Mapping[str, float]:
        found = [lite0_distance(*map(unit_features, pair)).double() for pair in frame_batches(ours, theirs)]
        return {"lite0": float(torch.cat(found).mean())}

    return Reading(
        name="lite0",
        facts={"weights": content_digest(WEIGHTS)},
        load=lambda _: lambda shard: read_pairs(shard, one),
        of=("pairs",),
    )


# ------------------------------------------------------------------------------------------------------------ measures

_ALL: Sequence[Measure] = (
    Measure(
        name="psnr",
        title="PSNR dB",
        needs=frozenset({"pairs"}),
        best=1,
        digits=2,
        reading=psnr_reading,
        score=psnr_score("mean"),
        meaning="PSNR: 10 log10(255² / MSE) to the uncached sample of the same noise, of each frame; mean of decibels over the "
        "frames that differ, then over the samples that do. pooled_db in the record is that of the mean squared error over all "
        "samples, which a few bad ones rule",
    ),
    Measure(
        name="ssim",
        title="SSIM",
        needs=frozenset({"pairs"}),
        best=1,
        digits=4,
        reading=_ssim_reading,
        score=lambda samples, _: mean_score(samples.whole("ssim")),
        meaning="SSIM: Wang et al. 2004, windows of 11 x 11 within the image, sigma 1.5, mean over colour channels, frames and "
        "samples",
    ),
    _lpips(
        "lpips",
        "alex",
        "AlexNet",
        "The caching papers do not say which network theirs is; AlexNet is that of independent reruns and the package's own "
        "choice.",
    ),
    _lpips("lpips-vgg", "vgg", "VGG16", "Figures of the two networks do not compare."),
    Measure(
        name="lite0",
        title="Lite0 distance",
        needs=frozenset({"pairs"}),
        best=-1,
        digits=2,
        reading=_lite0_reading,
        score=lambda samples, _: mean_score(samples.whole("lite0")),
        meaning="Lite0 distance: LPIPS's formula on EfficientNet-Lite0 without fitted weights, times 1000, sides resized to "
        "multiples of 32 pixels and at least 96; it compares with no LPIPS",
    ),
)
MEASURES = {measure.name: measure for measure in _ALL}
