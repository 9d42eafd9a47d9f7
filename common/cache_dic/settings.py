"""Settings of schedules and forecasters: read from text, checked, and written into labels and records."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

from cache_dic.errors import UserError, shown

KINDS = {"int": int, "float": float, "bool": bool, "str": str, "None": type(None)}
MEANING = {"int": "an integer", "float": "a finite number", "bool": "true or false", "str": "text", "None": "none"}
ENGINE_NAMES = ("folded", "layerwise", "walked", "stack", "hidden", "output", "latent")
"""Where features are kept; cache_dic.engine has the engines."""

GROUP_BYTES = 2**28
"""Features of one row of a batch held for one fold, at most, where nothing else is asked for: ten of FLUX.1 at 1024². Half of
it would spare 1 % of FLUX.1's memory and pass over the accumulators twice as often."""

SHORT = {"interval": "N", "max_order": "O", "warmup_steps": "W"}


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """Full steps that were searched for a model, as `cache_dic.searched` reads them from a file.

    name: of the file. digest: the first 16 characters of the SHA-256 of its bytes, by which files of one name are told apart.
    num_steps: of the runs that it is for.
    """

    name: str
    digest: str
    model: str
    num_steps: int
    full_steps: tuple[int, ...]

    @property
    def label(self) -> str:
        """As `10of50.1a2b3c4d`, of a cache that follows it."""
        return f"{len(self.full_steps)}of{self.num_steps}.{self.digest[:8]}"


def integer(name: str, value: Any, *, at_least: int, at_most: int | None = None) -> int:
    """The value of a setting as an int (from numpy's and torch's too); UserError for another type and out of range."""
    value = plain(value)
    if type(value) is not int or value < at_least:
        raise UserError(f"{name} = {shown(value)} must be an integer of at least {at_least}")
    if at_most is not None and value > at_most:
        raise UserError(f"{name} = {shown(value)} must be at most {at_most}")
    return value


def number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, at_most: float
) -> float:
    """The value of a setting as a finite float; UserError for another type and out of range."""
    value = check_kind(name, value, float)
    low = above if at_least is None else at_least
    if low is not None and (value < low or (value == low and at_least is None)):
        raise UserError(f"{name} = {shown(value)} must be {'above' if at_least is None else 'at least'} {low:g}")
    if value > at_most:
        raise UserError(f"{name} = {shown(value)} must be at most {at_most:g}")
    return float(value)


def plain(value: Any) -> Any:
    """The Python number of a scalar of numpy's or torch's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def check_name(name: Any) -> None:
    """UserError unless the name of a method can be part of a file's name and of a label."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise UserError(
            f"a method's name is of at most 64 letters, digits, '.', '_' and '-', and begins with neither '.' nor '-'; "
            f"{shown(name)} is not"
        )


def init_fields(forecaster: Any) -> list[Field]:
    """The fields of a dataclass, or of an object of it, that are set when it is made: its settings."""
    return [f for f in fields(forecaster) if f.init]


def values_of(forecaster: Any) -> dict[str, Any]:
    """The settings of a forecaster by name."""
    return {f.name: getattr(forecaster, f.name) for f in init_fields(forecaster)}


def kinds(annotation: Any) -> tuple[str, ...]:
    """Names in KINDS of what a field may hold, none where its annotation says something else.

    The annotation is text where the file begins with `from __future__ import annotations`.
    """
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    names = tuple(part.strip() for part in text.split("|"))
    return names if set(names) <= set(KINDS) else ()


def check_kind(name: str, value: Any, annotation: Any) -> Any:
    """The value of a setting as a field of that annotation takes it; UserError for another type.

    An integer will do for a float, true and false for nothing but a bool. Fields of other annotations take anything.
    """
    value, accepted = plain(value), kinds(annotation)
    fits = any(type(value) is KINDS[kind] or (kind == "float" and type(value) is int) for kind in accepted)
    if accepted and (not fits or (isinstance(value, float) and not math.isfinite(value))):
        raise UserError(f"{name} = {shown(value)} must be {' or '.join(MEANING[kind] for kind in accepted)}")
    return value


def from_text(text: str, annotation: Any) -> Any:
    """The value that a command line means: text for a field of text, else a bool, an int, a float or text as it reads; `none`
    where a field may hold nothing."""
    accepted = kinds(annotation)
    if "str" in accepted:
        return text
    if "None" in accepted and text.lower() == "none":
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not re.fullmatch(r"[\x21-\x7e]+", text) or "_" in text:  # int and float would take "1_000", " 1" and "١" too
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def full_steps_tuple(full_steps: Any) -> tuple[int, ...]:
    """A list of full steps given by hand: ascending, without repeats, from 0."""
    if isinstance(full_steps, str | bytes | Mapping) or not hasattr(full_steps, "__getitem__"):
        raise UserError(f"full_steps = {shown(full_steps)} must be a list of integers such as [0, 1, 5]")
    given = tuple(plain(step) for step in full_steps)
    if any(type(step) is not int for step in given):
        raise UserError(f"full_steps = {shown(given)} must be integers")
    if not given or given[0] != 0 or any(a >= b for a, b in itertools.pairwise(given)):
        raise UserError(
            f"full_steps = {shown(given)} must ascend without repeats and begin with 0: nothing to forecast from before"
        )
    return given


def label_part(name: str, value: Any) -> str:
    """A setting in a label, `N4` or `damping=0.5`: letters, digits and `.,_=+-` alone, other values other parts."""
    if isinstance(value, ScheduleFile):
        return value.label
    return f"{SHORT[name]}{_written(value)}" if name in SHORT else f"{escaped(name)}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_written_scalar, value)) + "," * (len(value) < 2)
    return _written_scalar(value)


def _written_scalar(value: Any) -> str:
    value = plain(value)
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        # What reads as another value, as the text "5" does, is marked.
        other = value in ("", "None") or not isinstance(from_text(value, None), str)
        return "=" * other + escaped(value)
    return "=" + escaped(f"{type(value).__name__}({value!r})")


def escaped(text: str) -> str:
    """Letters, digits, `.` and `_` as they are, other characters as `+` and their UTF-8 bytes in hexadecimal."""

    def code(found: re.Match[str]) -> str:
        return "".join(f"+{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))

    return re.sub(r"[^A-Za-z0-9._]", code, text)


def json_value(value: Any) -> Any:
    """A setting as JSON holds it: what has no form there, such as a path, a tensor or infinity, as its text."""
    value = plain(value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, ScheduleFile):
        return json_value(asdict(value))
    return str(value)
