"""The measures that are validated: what each is made of, what it is meant to see, and which of them look with other eyes."""

from collections.abc import Sequence
from dataclasses import dataclass

FRECHET, KERNEL, MEAN, GAP, PAIRED = "frechet", "kernel", "mean", "gap", "paired"
"""How an estimate is made: a Fréchet or a kernel distance to the reference set, a mean over samples, how far that mean is from
that of real samples, or a mean over pairs."""

_PICTURE = ("blur", "downscale", "noise")
_TIME = ("frames shuffled", "frames repeated")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """name: as in eval/score.py. kind: one of those above. of: the reading that it
    is made of. best: 1 where more is better, -1 where less. sees: ladders that it must follow, decided beforehand; others leave
    it alone by its nature. eyes: what it looks with; agreement is asked of measures of other eyes.
    """

    name: str
    title: str
    kind: str
    of: str
    best: int
    sees: Sequence[str]
    eyes: str
    digits: int = 2
    scale: float = 1.0


def _distances(network: str, title: str, sees: Sequence[str], digits: int) -> list[Candidate]:
    return [
        Candidate(
            name=f"fd-{network}",
            title=f"FD-{title}",
            kind=FRECHET,
            of=network,
            best=-1,
            sees=sees,
            eyes=network,
            digits=digits,
        ),
        Candidate(
            name=f"kid-{network}",
            title=f"KD-{title}",
            kind=KERNEL,
            of=network,
            best=-1,
            sees=sees,
            eyes=network,
            digits=digits if digits == 0 else 4,
        ),
    ]


_SETS = (*_PICTURE, "kinds dropped")
_IMAGES = [*_distances("lite0", "Lite0", _SETS, 1), *_distances("squeezenet", "SqueezeNet", _SETS, 0)]
_CLASSES = [
    *_distances("fashion", "FashionCNN", _SETS, 3),
    Candidate(
        name="class-accuracy", title="class accuracy %", kind=MEAN, of="class", best=1, eyes="fashion",
        sees=(*_PICTURE, "wrong captions"), digits=1, scale=100,
    ),
]  # fmt: skip
_SCORE = [
    Candidate(
        name="emoji-score", title="emoji score", kind=MEAN, of="vector", best=1, eyes="lite0",
        sees=(*_PICTURE, "wrong captions"),
    )
]  # fmt: skip
_CLIPS = [
    Candidate(name="flicker", title="flicker", kind=MEAN, of="flicker", best=-1, eyes="pixels", sees=("noise", *_TIME)),
    Candidate(
        name="flicker-gap", title="flicker, away from real", kind=GAP, of="flicker", best=-1, eyes="pixels",
        sees=("blur", "noise", *_TIME),
    ),
    Candidate(
        name="warping-error", title="warping error x1000", kind=MEAN, of="warping", best=-1, eyes="flow",
        sees=("noise", *_TIME),
    ),
    Candidate(
        name="warping-gap", title="warping error, away from real", kind=GAP, of="warping", best=-1, eyes="flow",
        sees=("blur", "noise", *_TIME),
    ),
]  # fmt: skip


def _paired(sees: Sequence[str]) -> list[Candidate]:
    return [
        Candidate(name="psnr", title="PSNR dB", kind=PAIRED, of="psnr", best=1, sees=sees, eyes="pixels"),
        Candidate(name="ssim", title="SSIM", kind=PAIRED, of="ssim", best=1, sees=sees, eyes="windows", digits=3),
        Candidate(name="lite0", title="Lite0 distance", kind=PAIRED, of="lite0", best=-1, sees=sees, eyes="lite0"),
    ]


_EMOJI = [*_IMAGES, *_SCORE, *_paired(_PICTURE)]
_VIDEO = [*_IMAGES, *_CLIPS, *_paired((*_PICTURE, *_TIME))]
CANDIDATES = {
    "fashion-mnist": [*_IMAGES, *_CLASSES, *_paired(_PICTURE)],
    "flux-tiny": _EMOJI,
    "hidream-tiny": _EMOJI,
    "wan-tiny": _VIDEO,
    "hunyuan-tiny": _VIDEO,
}
"""By embedded model."""
