"""The environment of VBench and ImageReward, envs/legacy-eval, asked as a process: JSON in, JSON out; needs no torch.

Its own side is envs/legacy-eval/answer.py. A process answers any number of requests, so that what takes long to load is loaded
once. It leaves no half answers: one that is late, that dies or that says anything else than an answer is ended, with an error.
"""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cache_dic import UserError
from cache_dic.errors import ListError
from seerkit.io.files import content_digest
from seerkit.io.records import Form, misfit

FOLDER = Path(__file__).resolve().parents[2] / "envs" / "legacy-eval"
SCRIPT = FOLDER / "answer.py"
VARIABLE = "TAYLORSEER_LEGACY_PYTHON"
SETUP = "bash scripts/setup_legacy_eval.sh"
STAMP = ".taylorseer-setup"  # in an environment that the script has finished
FACTS_S = 120.0  # for an interpreter to start on a busy machine
TAIL = 1500  # characters of what a process has said, for messages
FACTS: Form = {"python": str, "versions": {str: str}, "vbench_folder": (str, None), "has_detectron2": bool}


class LegacyError(UserError):
    """The environment did not answer, or answered with an error. kind: the name of the exception there, if there was one."""

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class MissingFilesError(ListError, FileNotFoundError):
    """Files that have to be fetched first, a line for each."""


# --------------------------------------------------------------------------------------------------------- environment


def legacy_python() -> Path:
    """The environment's python; UserError with the command that makes it where it is not there, or not whole."""
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise UserError(f"{VARIABLE}={named} is no program; name a python, or unset it and call `{SETUP}`")
        return Path(found)
    environment = FOLDER / ".venv"
    if not (environment / STAMP).is_file() or not (environment / "bin" / "python").exists():
        raise UserError(
            f"VBench and ImageReward run in an environment of their own, which is not installed in {environment}; "
            f"make it (6.5 GB) with `{SETUP}`, or name the python of another one in {VARIABLE}"
        )
    return environment / "bin" / "python"


def legacy_facts() -> dict[str, Any]:
    """python, versions by package, vbench_folder (None without VBench), has_detectron2; UserError without the environment."""
    return _facts_of(legacy_python())


@functools.cache
def _facts_of(_: Path) -> dict[str, Any]:
    with LegacyWorker() as worker:
        return worker.ask("facts", FACTS, limit_s=FACTS_S)


# -------------------------------------------------------------------------------------------------------------- worker


class LegacyWorker:
    """A process of that environment, from `with` to its end.

    variables: set in it besides those of this process. folder: that it runs in. log: gets what it prints; without one that is
    kept for messages only. The log is locked as long as the process lives.
    """

    def __init__(
        self, *, variables: Mapping[str, str] | None = None, folder: Path | None = None, log: Path | None = None
    ) -> None:
        self._variables, self._folder, self._log_path = dict(variables or {}), folder, log
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        python = legacy_python()
        self._log: IO[bytes] = tempfile.TemporaryFile() if self._log_path is None else _locked_log(self._log_path)
        # PYTHONPATH has packages of the main environment. No network: what is needed was looked for before.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **self._variables}
        try:
            self._process = subprocess.Popen(
                [python, "-u", SCRIPT], cwd=self._folder, env=environment, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise LegacyError(f"{python} cannot be started ({error.strerror}); make it anew with `{SETUP}`") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()

    def ask(self, call: str, form: Form, *, limit_s: float, **arguments: Any) -> Any:
        """What `call` of answer.py returns, of a form of `seerkit.io.records`; LegacyError where there is no such answer.

        limit_s: seconds after which the process is ended.
        """
        if self._process is None:
            raise LegacyError(f"{call}: the process has been ended after an earlier error")
        try:
            answer = json.loads(self._answer(json.dumps({"call": call, "arguments": arguments}), limit_s))
            error = answer.get("error")
            result = None if error else answer["result"]
        except (_GoneError, ValueError, AttributeError, KeyError) as fault:
            returncode = self._end()
            reason = str(fault) if isinstance(fault, _GoneError) else f"said what is no answer ({fault})"
            raise LegacyError(f"{call} in the legacy environment {reason.format(returncode)}{self._said()}") from fault
        if error:
            kind, message = str(error["kind"]), str(error["message"])
            raise LegacyError(f"{call} in the legacy environment ended with {kind}: {message}{self._place()}", kind)
        if found := misfit(result, form):
            self._end()
            raise LegacyError(f"{call} in the legacy environment answered half: {found}{self._said()}")
        return result

    def _answer(self, request: str, limit_s: float) -> bytes:
        """A line from the process for a line to it."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise _GoneError("ended by itself (exit status {})") from None
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise _GoneError(f"took longer than {limit_s:g} s and was ended")
            part = os.read(self._process.stdout.fileno(), 2**16)
            if not part:
                raise _GoneError("ended by itself (exit status {})")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _end(self) -> int | None:
        """End the process and what it has started; its exit status, negative for a signal, None where it was ended before."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)  # at the end of its input, by itself
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _said(self) -> str:
        """The end of what the process has printed, for a message."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4 * TAIL))
        text = " ".join(self._log.read().decode(errors="replace").split())[-TAIL:]
        self._log.seek(0, os.SEEK_END)
        return f"; the last that it printed: {text}{self._place()}" if text else ""

    def _place(self) -> str:
        return f" (all that it printed: {self._log_path})" if self._log_path else ""


class _GoneError(Exception):
    """Why there is no answer; {} stands for the exit status."""


def _locked_log(path: Path) -> IO[bytes]:
    """A log that one process at a time writes; UserError while another does."""
    import fcntl

    log = path.open("a+b")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise UserError(f"another process is at work on {path}; wait for it, or work in another folder") from None
    except OSError:  # a file system without locks
        pass
    log.truncate(0)
    return log


# ------------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A file that a library reads, which no package has.

    name: below the library's folder of weights. size: in words. source: where it is published. hub: a repository of the hub
    in whose cache a file of that name may also be. instead: other names that are as good.
    """

    name: str
    size: str
    source: str
    hub: str | None = None
    instead: Sequence[str] = ()

    def find(self, folder: Path) -> Path | None:
        """The file, None where it is missing."""
        for name in (self.name, *self.instead):
            if (folder / name).is_file():
                return folder / name
            if self.hub and (cached := _in_hub_cache(self.hub, Path(name).name)):
                return cached
        return None

    def line(self, folder: Path) -> str:
        """What is missing, how large it is, where it belongs and where it comes from."""
        return f"{folder / self.name} ({self.size}), from {self.source}"


def _in_hub_cache(repo: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name)
    return Path(found) if isinstance(found, str) else None


def missing_lines(needed: Sequence[Needed], folder: Path) -> list[str]:
    """A line for each file that is not there."""
    return [one.line(folder) for one in needed if one.find(folder) is None]


def weights_digests(needed: Sequence[Needed], folder: Path) -> dict[str, str]:
    """By name, digests of files that are there."""
    found = {one.name: one.find(folder) for one in needed}
    return {name: content_digest(path) for name, path in found.items() if path is not None}


BERT = "bert-base-uncased"
BERT_VOCABULARY = Needed(
    name=f"{BERT}/vocab.txt", size="231,508 bytes", source=f"https://huggingface.co/{BERT}", hub=BERT
)
"""Looked for by that name in the folder that a process runs in, which is that of the weights, then in the hub's cache."""
