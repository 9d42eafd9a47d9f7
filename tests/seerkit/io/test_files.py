"""Files are written whole, read as any editor leaves them, and told apart by their contents."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_dic import UserError
from seerkit.io.files import (
    check_space,
    clear_partial,
    content_digest,
    read_json,
    read_text,
    writable_directory,
    writable_file,
    write_json,
    written_whole,
)


@pytest.mark.parametrize(
    "data",
    [
        "a façade\nnext\n".encode(),
        b"\xef\xbb\xbf" + "a façade\nnext\n".encode(),
        "a façade\r\nnext\r\n".encode("utf-16"),
        b"\xfe\xff" + "a façade\rnext\r".encode("utf-16-be"),
    ],
    ids=["plain", "mark", "utf-16", "old Mac"],
)
def test_text_of_any_editor(tmp_path, data):
    path = tmp_path / "text"
    path.write_bytes(data)
    assert read_text(path) == "a façade\nnext\n"


def test_what_is_no_text_is_named(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xff\x00\x81")
    with pytest.raises(UserError, match=rf"prompt file {path} is not UTF-8 text .* save it as such"):
        read_text(path, "prompt file")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_text("a\0b")


def test_json_of_a_depth_that_nobody_writes(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"deep\.json"):
        read_json(path)
    path.write_text("{'a': 1}")
    with pytest.raises(UserError, match=r"record .*deep\.json is not JSON"):
        read_json(path, "record")


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, time
from pathlib import Path
from seerkit.io.files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_bytes_that_are_no_utf8_are_escaped(tmp_path):
    """As those of a file's name that was given as a flag; JSON has escapes for them."""
    write_json(tmp_path / "a.json", {"ckpt": os.fsdecode(b"\xff.pt"), "ä": 1})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert read_json(tmp_path / "a.json") == {"ckpt": os.fsdecode(b"\xff.pt"), "ä": 1}


@pytest.mark.parametrize("check", [writable_directory, writable_file])
def test_output_is_refused_where_weights_could_not_be_read(tmp_path, check):
    with pytest.raises(UserError, match="is not UTF-8"):
        check(tmp_path / os.fsdecode(b"\xff") / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_being_written_is_not_cleared_and_what_was_left_is(tmp_path):
    """Two commands may work on one folder."""
    target, left, within = tmp_path / "a.png", tmp_path / ".b.abc.partial.png", tmp_path / "c" / ".d.abc.partial.png"
    within.parent.mkdir()
    left.write_text("half")
    within.write_text("half")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        clear_partial(tmp_path)
        assert not left.exists()
        assert not within.exists(), "in folders too"
        within.parent.rmdir()
        assert len(list(tmp_path.iterdir())) == 1
        writer.communicate("go on\n", timeout=60)
    assert target.read_text() == "half"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        writer.stdout.readline()
        writer.kill()
    assert len(list(tmp_path.iterdir())) == 2
    clear_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_names_of_any_length_that_a_file_may_have(tmp_path):
    path = tmp_path / ("é" * 125 + ".mp4")
    with written_whole(path) as temporary:
        temporary.touch()
    assert path.is_file()


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def write() -> None:
        with written_whole(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device.*a\.json") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_space_is_checked_where_the_folder_will_be(tmp_path):
    check_space(tmp_path / "not" / "there", 1, "one byte")
    with pytest.raises(UserError, match=r"2 videos take about 1073741824\.00 GiB, and .* GiB are free at"):
        check_space(tmp_path / "not" / "there", 2**60, "2 videos")


class TestDigest:
    def test_contents_alone_count(self, tmp_path):
        a, b = tmp_path / "a", tmp_path / "b"
        a.write_bytes(b"x" * 100)
        b.write_bytes(b"x" * 100)
        os.utime(b, (time.time() - 1000,) * 2)
        assert content_digest(a) == content_digest(b) != content_digest(a, b)
        b.write_bytes(b"x" * 99 + b"y")
        assert content_digest(a) != content_digest(b)

    def test_large_files_are_digested_in_chunks(self, tmp_path, monkeypatch):
        path = tmp_path / "a"
        monkeypatch.setattr("seerkit.io.files._CHUNK", 7)
        seen = set()
        for change in (b"", b"0", b"1"):
            path.write_bytes(b"x" * 30 + change + b"x" * (30 - len(change)))
            seen.add(content_digest(path))
        assert len(seen) == 3

    @pytest.mark.parametrize(("age", "times"), [(1000, 1), (0, 3)], ids=["settled", "just changed"])
    def test_a_file_is_read_again_where_its_time_of_change_cannot_be_trusted(self, tmp_path, monkeypatch, age, times):
        path, opened = tmp_path / "a", []
        monkeypatch.setattr(Path, "open", lambda self, mode, real=Path.open: opened.append(self) or real(self, mode))
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
        opened.clear()
        first, *others = (content_digest(path) for _ in range(3))
        assert others == [first, first]
        assert len(opened) == times
        path.write_bytes(b"y")
        os.utime(path, (time.time() - age + 5,) * 2)
        assert content_digest(path) != first

    def test_of_a_folder_names_count_and_notes_do_not(self, tmp_path):
        folder = tmp_path / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        first = content_digest(folder)
        (folder / "README.md").write_text("notes")
        (folder / ".cache").mkdir()
        (folder / ".cache" / "x").write_text("y")
        assert content_digest(folder) == first
        (folder / "config.json").rename(folder / "other.json")
        assert content_digest(folder) != first
