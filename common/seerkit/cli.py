"""A small command-line layer: one-line errors with exit code 2, help with defaults and an example that runs."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
from tqdm import tqdm

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of every command's --precision


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        hide = action.default in (None, False, [], argparse.SUPPRESS) or "%(default)" in (action.help or "")
        return (action.help or "") if hide else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; `examples` are printed at the end of --help."""

    def __init__(self, description: str, examples: str, **options: object) -> None:
        epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


class _Once(logging.Filter):
    """Lets every message through once: repeated runs of one cache announce themselves once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        fresh = message not in self.seen
        self.seen.add(message)
        return fresh


class _AboveBars(logging.Handler):
    """Prints messages to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def show_log(name: str = "cache_dic") -> None:
    """Show what a package reports at INFO on stderr, each message once."""
    logger = logging.getLogger(name)
    handler = _AboveBars()
    handler.addFilter(_Once())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def run_command(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> NoReturn:
    """Run `main` and exit: 0 on success, 2 with one line for what a user can cause, 130 when interrupted.

    Errors that a user can cause are ValueError and OSError by convention here; TAYLORSEER_TRACEBACK=1 shows where they
    arose. Anything else is a defect and keeps its traceback.
    """
    from seerkit.allocator import keep_freed_memory
    from seerkit.distributed import stop_world

    keep_freed_memory()
    try:
        main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("TAYLORSEER_TRACEBACK"):
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    finally:
        stop_world()
    sys.exit(0)


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = _number(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def non_negative_int(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    value = _number(int, text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and finite")
    return value


def true_or_false(text: str) -> bool:
    """An argparse type: true or false, yes or no, 1 or 0, in any case."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _number(kind: type, text: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
