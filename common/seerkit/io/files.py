"""Files: written whole, read as any system writes them, told apart by their contents.

A file is written to a temporary name beside the target, then renamed over it. While it is being written it is locked, so that
what a killed process left behind can be told from what another process is still writing.
"""

import codecs
import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache_dic import UserError
from cache_dic.errors import shown_bytes

SETTLED_S = 2  # after its last change, a file's time of change tells the next one apart on every file system
_CHUNK = 2**24  # bytes of a file that one thread digests at a time
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


# --------------------------------------------------------------------------------------------------------------- write


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` on success and removed on failure.

    The temporary name ends like the target (`.partial.png`), for writers that look at the suffix. An OSError that names no
    file, as of a write to a full disk, is raised with the name of the target.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _locked_temporary(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path` and the handle that locks it."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=f".partial{path.suffix}")
        _lock(handle)
        if os.path.exists(name):  # not cleared in the moment before it was locked
            return handle, Path(name)
        os.close(handle)


def _prefix(path: Path) -> str:
    """Of a temporary name: names of files have at most 255 bytes, so a long one is cut, which the random part makes up for."""
    stem = os.fsencode(path.stem)[:150].decode(errors="ignore")  # bytes are text only where the locale says so
    return f".{os.fsdecode(stem.encode())}."


def _lock(handle: int) -> bool:
    """Lock an open file; False if another process has it. File systems without locks let everybody pass."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def clear_partial(folder: Path, target: Path | None = None) -> None:
    """Remove what killed processes left half written in a folder, and nothing that is still being written.

    target: the file in it that they were writing, None for any, in folders within it too.
    """
    leftovers = folder.glob(f"{glob.escape(_prefix(target))}*.partial*") if target else folder.rglob(".*.partial*")
    for leftover in leftovers:
        try:
            handle = os.open(leftover, os.O_RDWR)
        except OSError:  # finished or cleared meanwhile, or not ours
            continue
        try:
            if _lock(handle):
                leftover.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, written whole. Bytes of a file's name that are no UTF-8 are written as escapes, which JSON reads back."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def copy_whole(source: str | Path, target: str | Path) -> Path:
    """The target, with what is in the source."""
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
    return Path(target)


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON, written whole; ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def writable_file(path: str | Path) -> Path:
    """`path` as a file that can be written, its folder made; UserError names it otherwise. Asked before the work is done."""
    path = Path(path)
    _check_name(path)
    if path.exists() and not path.is_file():
        raise UserError(f"output file {path} is a folder or a device; name a file")
    writable_directory(path.parent)
    return path


def _check_name(path: Path) -> None:
    """UserError for a name whose bytes are not UTF-8: safetensors would write there, and refuse to read what it wrote."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the name of output {path} is not UTF-8, under which weights cannot be read; choose another"
        ) from error


def writable_directory(path: str | Path) -> Path:
    """`path` as an existing directory that files can be created in; UserError names it otherwise."""
    path = Path(path)
    _check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"output directory {path} cannot be written ({reason}); choose another one") from error
    return path


@contextlib.contextmanager
def writable_or_gone(path: str | Path) -> Iterator[None]:
    """`writable_directory` for what follows; if that fails, the folders made for it are removed, where still empty."""
    made = [folder for folder in (Path(path), *Path(path).parents) if not os.path.lexists(folder)]
    try:
        writable_directory(path)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """UserError if `num_bytes` more do not fit the disk of a folder, which need not be there yet. what: for the message."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise UserError(
            f"{what} take about {shown_bytes(num_bytes)}, and {shown_bytes(free)} are free at {place}; "
            "ask for fewer, or write to another disk"
        )


# ---------------------------------------------------------------------------------------------------------------- read


def read_text(path: str | Path, what: str = "file") -> str:
    """A text file of any editor: UTF-8 with or without a byte order mark, or UTF-16 with one; lines end in \\n.

    what: the kind of file, for messages. UserError if it cannot be read as such.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text ({error}); save it as such") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, what: str = "file") -> Any:
    """The value in a JSON file; UserError if it cannot be read or is no JSON."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{what} {path} is nested too deeply to be read") from None
    except ValueError as error:  # of the JSON, or an integer of thousands of digits
        raise UserError(f"{what} {path} is not JSON ({error})") from error


def content_digest(*paths: Path) -> str:
    """Sixteen characters that tell the contents of files apart, whatever they are called.

    A folder stands for the files in it that are neither hidden nor Markdown, with their names. Large files are digested in
    chunks by several threads, so that it takes little more than reading them; what a process has digested it does not read
    again while size and time of change stay.
    """
    parts = []
    for path in paths:
        members = [path] if path.is_file() else _members(path)
        parts += [("" if member == path else str(member.relative_to(path)), member) for member in members]
    chunks = [(part, start) for part in parts for start in range(0, max(1, part[1].stat().st_size), _CHUNK)]
    whole = hashlib.sha256()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for ((name, _), start), digest in zip(chunks, pool.map(_digest_chunk, chunks), strict=True):
            whole.update(f"{name}\0{start}\0".encode() + digest)
    return whole.hexdigest()[:16]


def _members(folder: Path) -> Sequence[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    shown = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return [path for path in shown if path.suffix != ".md"]


def _digest_chunk(chunk: tuple[tuple[str, Path], int]) -> bytes:
    (_, path), start = chunk
    status = path.stat()
    settled = time.time() - status.st_mtime > SETTLED_S
    digest = _digest_at if settled else _digest_at.__wrapped__
    return digest(path, start, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=2**14)
def _digest_at(path: Path, start: int, status: tuple[int, ...]) -> bytes:
    """Of the chunk from `start` of a file of this status."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(_CHUNK)).digest()
