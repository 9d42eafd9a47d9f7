"""A slice measured in this process, part by part, each stored as soon as it is done."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from evaluation.gpu.journal import Journal
from evaluation.gpu.parts import Work
from evaluation.gpu.slices import SLICES, Slice
from evaluation.gpu.subject import free
from seerkit.command.cli import user_message
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.records import conditions

H100_FLOPS = 989e12 * 0.6
"""Operations a second that full steps attain on an H100, about: three fifths of NVIDIA's figure for bf16 without sparsity."""


def hardware(device: torch.device) -> dict[str, Any]:
    """Driver and memory of a device."""
    if device.type != "cuda":
        return {"driver": None, "memory_bytes": None, "cuda": None, "system": platform.platform()}
    found = torch.cuda.get_device_properties(device)
    return {
        "driver": driver(),
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "system": platform.platform(),
    }


def driver() -> str | None:
    """Version of NVIDIA's driver, as its own tool tells; None where there is none such."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] if told else None


def measure_slice(journal: Journal, one: Slice, device: str, budget_s: float) -> None:
    """Measure what is waiting of a slice, as far as `budget_s` seconds reach; the first part is begun in any case.

    An error of a part is stored in its place. After one of the device itself, which leaves it unusable for a process, the rest
    is left to the next call.
    """
    begun, parent = time.monotonic(), os.getppid()
    resolved = resolve_device(device)
    work = Work(one, journal.settings, device)
    dtype = torch_dtype(journal.settings["precision"])
    journal.plan([part.name for part in work.parts], {**conditions(resolved, dtype), **hardware(resolved)})
    waiting = [part for part in work.parts if part.name in journal.waiting]
    with tqdm(waiting, desc=one.name, unit="part", mininterval=1) as bar:
        for number, part in enumerate(bar):
            bar.set_postfix_str(part.name)
            if number and time.monotonic() - begun + work.expected_s(part, work.full_step_s) > budget_s:
                return
            if os.getppid() != parent:  # what began this process has been killed, and may have been called again
                return
            if not journal.begin(part.name):
                continue
            start = time.monotonic()
            try:
                with contextlib.redirect_stdout(sys.stderr):  # cache-dit tells there what it does
                    value = part.measure()
                journal.finish(part.name, value, time.monotonic() - start)
            except Exception as error:
                journal.fail(
                    part.name, user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                )
                if is_broken(error):
                    return
            free(resolved)


def is_broken(error: Exception) -> bool:
    """Whether an error is the device's own, after which every call of this process fails; a lack of memory is none."""
    return (
        isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)
    )


def estimate(settings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By slice, parts and seconds that they take on an H100, about, from the operations of full steps; nothing is measured."""
    rows = {}
    for name, of_slice in settings.items():
        one = SLICES[name]
        if one.missing():
            rows[name] = {"parts": 0, "seconds": 0.0, "left_out": one.missing()}
            continue
        work = Work(one, of_slice, "cpu")
        full_step_s = work.subject.flops / H100_FLOPS if work.subject else 0.0
        seconds = [work.expected_s(part, full_step_s) for part in work.parts]
        rows[name] = {
            "parts": len(seconds),
            "seconds": work.setup_s + sum(seconds),
            "longest_s": work.setup_s + max(seconds),
            "left_out": None,
        }
    return rows
