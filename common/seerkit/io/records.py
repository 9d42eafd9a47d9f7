"""One JSON record per run: configuration, results with units, and the conditions of the run; checked when read back."""

import datetime
import json
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from seerkit.io.files import read_json

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "diffusers", "transformers", "triton")


# ---------------------------------------------------------------------------------------------------------- conditions


def conditions(device: "torch.device", dtype: "torch.dtype") -> dict[str, Any]:
    """Device, precision, versions, commit and date of a run."""
    import torch

    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: "torch.device") -> str:
    """The processor's name, as its maker writes it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name") and ":" in line:
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Of an installed distribution, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working tree, `+changes` where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            capture_output=True, encoding="ascii", errors="replace", timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


# ---------------------------------------------------------------------------------------------------------------- read

Form = Any
"""What a command reads of a JSON value. A type (float takes whole numbers, too, and finite ones alone); a function that says
whether a value fits, its docstring saying what does; {key: form} for an object that has these keys among others, {str: form}
for one of any keys; [form] for a list that is not empty; a text for that very text; and a tuple of forms for any of them,
with None among them also for a key that is not there."""

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def positive(value: Any) -> bool:
    """a number above 0"""
    return _fits(value, float) and value > 0


def read_record(path: Path, form: Form, made_by: str) -> Any:
    """The record in a JSON file; UserError naming the file and what of it is not of `form`.

    made_by: the command that makes such a record.
    """
    record = read_json(path, "record")
    try:
        json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise UserError(f"record {path} is nested too deeply to be read") from None
    except ValueError as error:
        raise UserError(
            f"record {path} holds what JSON does not have ({error}); make it anew with `{made_by}`"
        ) from None
    if found := misfit(record, form):
        raise UserError(f"{path} is not a record of `{made_by}`: {found}")
    return record


def misfit(value: Any, form: Form, place: str = "") -> str | None:
    """What in a JSON value is not of a form, in words; None where all is."""
    if isinstance(form, tuple):
        misfits = [misfit(value, one, place) for one in form]
        return None if None in misfits else misfits[-1]
    inner: list[tuple[Any, Form, str]] = []
    if isinstance(form, dict) and isinstance(value, dict):
        keys = value if str in form else form
        for key in keys:
            wanted = form.get(key, form.get(str))
            if key not in value and not (isinstance(wanted, tuple) and None in wanted):
                return f'{place or "it"} lacks "{key}"'
            inner.append((value.get(key), wanted, f"{place}.{key}" if place else str(key)))
    elif isinstance(form, list) and isinstance(value, list) and value:
        inner = [(one, form[0], f"{place}[{number}]") for number, one in enumerate(value)]
    elif isinstance(form, dict | list) or not _fits(value, form):
        return f"{place or 'it'} is {_shown(value)} instead of {_wanted(form)}"
    return next((found for part in inner if (found := misfit(*part))), None)


def _fits(value: Any, form: Form) -> bool:
    if form is None or isinstance(form, str):
        return value == form
    if form in (float, int):
        kinds = int | float if form is float else int
        try:
            return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # an integer beyond the largest float
            return False
    return isinstance(value, form) if isinstance(form, type) else form(value)


def _wanted(form: Form) -> str:
    if isinstance(form, dict | list):
        return "an object" if isinstance(form, dict) else "a list that is not empty"
    if form is None or isinstance(form, str):
        return json.dumps(form)
    return _NAMES[form] if isinstance(form, type) else str(form.__doc__)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
