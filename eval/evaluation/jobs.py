"""What the commands that sample for prompts share, be it images or videos: the job that a command line asks for."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_dic import Cache
from evaluation.backbones import count_caches
from seerkit.cli import PRECISIONS
from seerkit.outputs import digest
from seerkit.prompts import Batch, make_batches


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line asks for. args: parsed, those of the caches among them.

    prompts: one a sample. caches: by label. settings: what the samples depend on but for caches, model and num_steps among
    them. sizes: of the workload, for `evaluation.backbones.workload`. out: gets a folder for every cache.
    """

    command: str
    args: argparse.Namespace
    prompts: list[str]
    caches: dict[str, Cache]
    settings: dict[str, Any]
    sizes: dict[str, Any]
    out: Path

    @property
    def num_steps(self) -> int:
        return self.settings["num_steps"]

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.args.precision]

    def batches(self) -> list[Batch]:
        return make_batches(self.prompts, self.args.batch_size)

    def counts(self) -> dict[str, dict[str, Any]]:
        """By label, FLOPs, full steps and kept bytes of the first batch."""
        samples = len(self.batches()[0].indices)
        return count_caches(
            self.settings["model"], self.caches, self.num_steps, self.dtype, num_samples=samples, **self.sizes
        )

    def print_plan(self, counts: dict[str, dict[str, Any]]) -> None:
        """What --dry-run prints."""
        print(json.dumps({"settings": self.settings, "output_dir": str(self.out), "batch": counts}, indent=2))

    def claims(self, label: str) -> dict[str, Any]:
        """What the samples of a cache depend on: those of other settings are never mixed with them."""
        return {**self.settings, "cache": label, "accumulator_dtype": self.args.accumulator_dtype}


def repeated(prompts: Sequence[str], samples_per_prompt: int) -> list[str]:
    """Each prompt as many times as it has samples, which follow each other."""
    return [prompt for prompt in prompts for _ in range(samples_per_prompt)]


def output_folder(given: Path | None, family: str, settings: dict[str, Any]) -> Path:
    """The folder asked for, or outputs/FAMILY/MODEL-DIGEST."""
    return given or Path("outputs") / family / f"{settings['model']}-{digest(settings)}"
