"""What a user can cause, apart from what only we can."""

import reprlib
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """A value, a file or a combination of settings that cannot work: the message names it, what is accepted, and the remedy.

    Commands print the message as one line and exit with 2. Any other ValueError is a defect of ours and keeps its traceback.
    """


class ListError(Exception):
    """An error whose message is a list of several lines, which commands print as they are."""


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or more"
    short = reprlib.Repr()
    short.maxtuple = short.maxlist = 20
    short.maxstring = short.maxother = 80
    return short.repr(value)


def shown_bytes(size: float) -> str:
    """A number of bytes for a message, in the largest of B, KiB, MiB and GiB that it holds at least one of."""
    units = ("B", "KiB", "MiB", "GiB")
    power = next((power for power in (3, 2, 1) if size >= 1024**power), 0)
    return f"{size / 1024**power:.{2 if power else 0}f} {units[power]}"


def check_choice(kind: str, name: object, choices: Collection[str]) -> None:
    """UserError if `name` is none of the choices: they are listed, and the nearest is suggested."""
    if not isinstance(name, str) or name not in choices:
        raise UserError(f"{kind} {shown(name)} is unknown; choose from {', '.join(choices)}{suggestion(name, choices)}")


def suggestion(name: object, choices: Collection[str]) -> str:
    """`; did you mean 'interval'?`: a choice that begins with the name or is like it; nothing where there is none."""
    begun = [choice for choice in choices if len(str(name)) > 2 and choice.startswith(str(name))]
    near = begun or get_close_matches(str(name), choices, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


@contextmanager
def run_of_user_code(what: str, file: str | None, line: int | None = None) -> Iterator[None]:
    """Whatever code of a user's raises, `sys.exit` too, becomes a UserError with its own text and its place in `file`.

    line: named where the error arose outside of the file. What a file of this package raises is left as it is: a UserError
    of ours, or a defect.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if file is not None and is_ours(file):
            raise
        lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
        if isinstance(error, SyntaxError) and error.filename == file and error.lineno is not None:
            lines.append(error.lineno)
        place = ":".join(str(part) for part in (file, lines[-1] if lines else line) if part is not None)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(": ".join(part for part in (what, place, text) if part)) from error


def source_of(forecaster: type, method: str = "weights") -> tuple[str | None, int | None]:
    """File of a class and first line of a method, by default a forecaster's, as far as they can be told."""
    codes = [getattr(vars(forecaster).get(name), "__code__", None) for name in (method, "__post_init__")]
    for code in codes:
        if code is not None:
            return code.co_filename, code.co_firstlineno
    return getattr(sys.modules.get(forecaster.__module__), "__file__", None), None


def code_of(*made: type) -> dict[str, dict[str, str]]:
    """For a claim, what tells classes that plugins bring from other versions: as `code`, by class, digests of the files that it
    and its bases come from, as they were run (`__digest__` of their modules); nothing of classes of ours."""
    code: dict[str, str] = {}
    for kind in dict.fromkeys(made):
        modules = dict.fromkeys(sys.modules.get(base.__module__) for base in kind.__mro__)
        if digests := "".join(getattr(module, "__digest__", "") for module in modules):
            code[kind.__name__] = code.get(kind.__name__, "") + digests
    return {"code": code} if code else {}


def is_ours(file: str) -> bool:
    """Whether a source file is of this package."""
    return Path(file).is_relative_to(Path(__file__).parent)
