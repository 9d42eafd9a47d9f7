"""What is measured, by the name of a slice, and with which settings; needs no torch."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.backbones import PACKAGES
from seerkit.io.records import version_of

SUBJECTS = {
    "dit": ("DiT-XL/2", "debug"),
    "flux": ("flux-dev", "flux-debug"),
    "hunyuan": ("hunyuan-video", "hunyuan-debug"),
    "wan": ("wan-t2v-1.3B", "wan-debug"),
    "hidream": ("hidream-full", "hidream-debug"),
}
"""By the folder of their records: the model that the published tables are of, and what stands for it with --tiny."""

KINDS = {
    "steps": "full and forecast steps, with their operations and bytes",
    "runs": "whole runs, cached and not, and peak memory by engine",
    "compiled": "the same compiled, and diffusers' compiled model",
    "methods": "a run of every method of the registry",
    "diffusers": "diffusers' model and its hooks",
    "cache-dit": "cache-dit on diffusers' model",
    "pipeline": "text encoders, denoising and autoencoder",
}
"""Of slices that every backbone has, most wanted first, and what they measure."""

NEEDS = {"tests": ("pytest",), "diffusers": ("diffusers",), "cache-dit": ("cache_dit", "diffusers")}
"""By kind, the modules without which there is nothing to measure."""

DISTRIBUTIONS = {"cache_dit": "cache-dit"}
"""What modules of NEEDS are installed as, where that differs."""

VERSIONS = ("torch", "triton", "diffusers", "transformers", "cache-dit")
"""Of packages: with others, a slice is measured anew."""

NO_REFERENCE = ("dit",)
"""Backbones without a model of diffusers to compare with (`Backbone.reference`)."""

NO_HOOKS = ("hidream",)
"""Backbones whose model of diffusers 0.42 takes none of its hooks."""


@dataclass(frozen=True)
class Slice:
    """One call's worth of work. folder: of the backbone's records, None for what is of the device alone."""

    kind: str
    folder: str | None = None

    @property
    def name(self) -> str:
        return self.kind if self.folder is None else f"{self.folder}-{self.kind}"

    @property
    def summary(self) -> str:
        if self.folder is None:
            return COMMON[self.kind]
        return f"{SUBJECTS[self.folder][0]}: {KINDS[self.kind]}"

    def model(self, *, tiny: bool) -> str | None:
        """The model that is timed."""
        return SUBJECTS[self.folder][tiny] if self.folder else None

    def missing(self) -> str | None:
        """Why there is nothing to measure, None where there is something."""
        lacking = [name for name in NEEDS.get(self.kind, ()) if importlib.util.find_spec(name) is None]
        if lacking:
            names = [DISTRIBUTIONS.get(name, name) for name in lacking]
            return f"{' and '.join(names)} not installed; `pip install {' '.join(names)}` and call again"
        return None


COMMON = {
    "tests": "the tests that need a GPU (pytest -m gpu)",
    "ceilings": "what the device attains: a product of matrices and a copy",
}
"""Slices of the device, and what they measure."""

SLICES = {
    one.name: one
    for one in (
        *(Slice(kind) for kind in COMMON),
        *(
            Slice(kind, folder)
            for kind in KINDS
            for folder in SUBJECTS
            if not (kind in ("diffusers", "cache-dit") and folder in NO_REFERENCE)
        ),
    )
}
"""By name, in the order in which they are measured."""


def settings_of(one: Slice, *, tiny: bool, precision: str, repeats: int, dropped: int, device: str) -> dict[str, Any]:
    """What a slice's measurements depend on: others make it begin anew. device: the name of the processor."""
    return {
        "slice": one.name,
        "model": one.model(tiny=tiny),
        "size": "tiny" if tiny else "published",
        "precision": precision,
        "repeats": repeats,
        "dropped": dropped,
        "device": device,
        "versions": {name: found for name in VERSIONS if (found := version_of(name))},
        "missing": one.missing(),
    }


def package_of(one: Slice) -> str:
    """The backbone's package, which has the name of a preset."""
    assert one.folder is not None, "of a slice of a backbone"
    return PACKAGES[SUBJECTS[one.folder][0]]


def chosen(names: Sequence[str] | None) -> list[Slice]:
    """Slices in their order, all where none is named."""
    return [one for name, one in SLICES.items() if not names or name in names]
