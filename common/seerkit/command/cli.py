"""The command-line layer: a parser, types of arguments, and the frame that turns errors into lines."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

import seerkit.environment  # noqa: F401
from seerkit.limits import MAX_GUIDANCE

Number = TypeVar("Number", int, float)
LIKE = 0.75  # of two flags' letters, so that one may be meant by the other


SECTIONS = ("model", "prompts", "data", "sampling", "training", "caching", "measuring", "output", "device")
"""Of --help, in this order; a command shows those that it has flags of."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A flag by its first name, with its other names, and its default where that says something, behind the help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *rest: Any, **named: Any) -> None:
        actions = list(actions)
        shown = [action for action in actions if not action.option_strings or action.required]
        if usage is None and len(shown) < len(actions):
            words = [self._usage_word(action) for action in shown]
            usage = " ".join(["%(prog)s", *words, "[flags]"])
        super().add_usage(usage, actions, *rest, **named)

    def _usage_word(self, action: argparse.Action) -> str:
        default = action.dest.upper() if action.option_strings else action.dest
        return " ".join([*action.option_strings[:1], self._format_args(action, default)])

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or isinstance(action, argparse.BooleanOptionalAction):
            return super()._format_action_invocation(action)
        shown = action.option_strings if action.option_strings[0] == "-h" else action.option_strings[:1]
        values = [] if action.nargs == 0 else [self._format_args(action, action.dest.upper())]
        return " ".join([", ".join(shown), *values])

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_something = action.default is not False and action.default not in (None, [], argparse.SUPPRESS)
        if says_something and "(default" not in text:
            text += " (default: %(default)s)"
        others = [name for name in action.option_strings[1:] if not name.startswith("--no-")]
        return f"{text} [also {', '.join(others)}]" if others and action.option_strings[0] != "-h" else text


class Arguments(argparse.Namespace):
    """What was parsed. command_line: what it was parsed from, which is none of the arguments that `vars` gives."""

    __slots__ = ("command_line",)
    command_line: list[str]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with sections, whose errors are one line; `examples` are printed at the end of --help.

    Flags are written with hyphens; underscores are taken for them on every command line.
    """

    def __init__(self, description: str, examples: str, **options: Any) -> None:
        epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False, **options
        )
        self._sections = {title: self.add_argument_group(title) for title in SECTIONS}
        self.not_taken: Mapping[str, str] = {}
        """Flags of a reference command that there are not here, each with what to do instead."""

    def section(self, title: str) -> argparse._ArgumentGroup:
        """The section of --help for flags of a kind, one of SECTIONS."""
        return self._sections[title]

    def flags_in(self, title: str) -> list[argparse.Action]:
        """The flags of a section."""
        return list(self._sections[title]._group_actions)

    def hide(self, *flags: str) -> None:
        """Leave flags out of --help, which the command knows only to refuse them with a reason."""
        for flag in flags:
            self._option_string_actions[flag].help = argparse.SUPPRESS

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As ArgumentParser's; the flag that an unknown one may mean is named."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [text.partition("=")[0].replace("_", "-") for text in unknown if text.startswith("--")]
            for flag in flags:
                if flag in self.not_taken:
                    self.error(f"{flag} is not taken here: {self.not_taken[flag]}")
            names = {name.lstrip("-"): name for name in self._option_string_actions}
            near = get_close_matches(flags[0].lstrip("-"), names, 1, LIKE) if flags else []
            meant = f"; did you mean {names[near[0]]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return parsed

    def _hyphenated(self, text: str) -> str:
        """A flag with hyphens for underscores, where that is one; anything else as it is."""
        name, separator, value = text.partition("=")
        hyphenated = name.replace("_", "-")
        is_flag = name.startswith("--") and hyphenated in self._option_string_actions
        return hyphenated + separator + value if is_flag else text

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As ArgumentParser's, which however takes the value of `--seed=--` for an empty list, whatever the type."""
        given = [self._hyphenated(text) for text in (sys.argv[1:] if args is None else args)]
        for text in given:
            name, _, value = text.partition("=")
            if name.startswith("--") and value == "--":
                self.error(f"argument {name}: -- is no value")
        self._refuse_two_spellings(given)
        parsed, unknown = super().parse_known_args(given, Arguments() if namespace is None else namespace)
        if isinstance(parsed, Arguments):
            parsed.command_line = given
        return parsed, unknown

    def _refuse_two_spellings(self, given: Sequence[str]) -> None:
        """Two names of one flag on a command line would contradict each other, and the last one would win unseen."""
        used: dict[str, str] = {}
        for name in (text.partition("=")[0] for text in given):
            action = self._option_string_actions.get(name)
            if action is None or action.nargs == 0:
                continue
            first = used.setdefault(action.dest, name)
            if first != name:
                self.error(f"argument {name}: the same as {first}; give one of them")

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
    """Run `main` and exit: 0 on success, 2 with one line (or a list) for what a user can cause, 130 when interrupted.

    What a user can cause is UserError, OSError (files, disks, networks) and memory that cannot be had;
    TAYLORSEER_TRACEBACK=1 shows where it arose. Anything else is a defect and keeps its traceback.
    """
    from seerkit.devices.memory import keep_freed_memory

    for stream in (sys.stdout, sys.stderr):  # a locale that is not UTF-8 must not stop a message
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    try:
        main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = user_message(error)
        if line is None or os.environ.get("TAYLORSEER_TRACEBACK"):
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {line}", file=sys.stderr)
        sys.exit(2)
    finally:
        if distributed := sys.modules.get("seerkit.devices.distributed"):
            distributed.stop_world()
    sys.exit(0)


def user_message(error: BaseException) -> str | None:
    """One line for an error that a user can cause, with its remedy, or those of a list; None for a defect of ours."""
    from cache_dic import UserError
    from cache_dic.errors import ListError
    from seerkit.devices.memory import is_out_of_memory

    text = str(error) if isinstance(error, ListError) else " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{text}: free some space, or write elsewhere; what was finished is kept" if full else text
    if is_out_of_memory(error):
        first = text.split(". ")[0][:200]
        return f"out of memory ({first}); take a smaller size or batch, --offload or another device; what is finished is kept"
    return None


def integer(at_least: int, at_most: int) -> Callable[[str], int]:
    """An argparse type: an integer of this range."""

    def convert(text: str) -> int:
        return _within(_number(int, text), text, at_least, at_most)

    return convert


positive_int = integer(1, 2**31 - 1)
"""An argparse type: an integer of at least 1; what is counted fits into 32 bits."""

non_negative_int = integer(0, 2**63 - 1)
"""An argparse type: an integer of at least 0, a seed above all, of which torch takes 63 bits."""


def positive_float(text: str) -> float:
    """An argparse type: a number above 0 and at most 10^12, past which nothing is measured."""
    return _positive(text, 10**12)


def guidance_weight(text: str) -> float:
    """An argparse type: a weight of guidance, above 0 and at most 10^9, which float32 still has; usual ones are 1 to 20."""
    return _positive(text, MAX_GUIDANCE)


def non_negative_float(text: str) -> float:
    """An argparse type: a number of at least 0 and at most 10^12."""
    value = _number(float, text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]} must be at least 0 and finite")
    return _within(value, text, 0, 10**12)


def share(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    value = _number(float, text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]} must lie in [0, 1)")
    return value


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N; whether it is there is asked when it is used, as a plan needs none."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"device {text[:40]!r} is unknown; choose auto, cpu, cuda or cuda:N")
    return text


def json_file(text: str) -> Path:
    """An argparse type: a file for a record, so that no file of another kind is written over."""
    path = Path(text)
    if path.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(f"{text[:80]!r} must end in .json")
    return path


def file_stem(text: str) -> str:
    """An argparse type: a name for files in a folder, which does not lead out of it."""
    if not re.fullmatch(r"[\w+=,-][\w.+=,-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot name a file; give up to 100 letters, digits, '.', '_' or '-', no folders"
        )
    return text


def true_or_false(text: str) -> bool:
    """An argparse type: true or false, yes or no, 1 or 0, in any case."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _positive(text: str, at_most: int) -> float:
    value = _number(float, text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and finite")
    return _within(value, text, 0, at_most)


def _number(kind: type[Number], text: str) -> Number:
    """The number that ASCII digits write; int and float would take `1_000`, ` 1` and digits of any script too."""
    try:
        if not text.isascii() or "_" in text or text != text.strip():
            raise ValueError
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not {'an integer' if kind is int else 'a number'}"
        ) from None


def _within(value: Number, text: str, at_least: Number, at_most: Number) -> Number:
    if value < at_least:
        raise argparse.ArgumentTypeError(f"{text[:40]} must be at least {at_least}")
    if value > at_most:
        raise argparse.ArgumentTypeError(f"{text[:40]} must be at most {at_most}")
    return value


def refuse_without_effect(args: argparse.Namespace, model: str, *flags: str) -> None:
    """UserError for flags that were given though they have no effect on a model."""
    from cache_dic import UserError

    for flag in flags:
        if getattr(args, flag.lstrip("-").replace("-", "_")) not in (None, False):
            raise UserError(f"{flag} has no effect on {model}; leave it out")
