import argparse
import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from seerkit.cli import Parser, non_negative_int, positive_float, positive_int, run_command, true_or_false
from seerkit.distributed import resolve_device, start_world, stop_world
from seerkit.files import writable_directory, write_json, written_whole


def exit_of(main, capsys) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with pytest.raises(SystemExit) as caught:
        run_command(main, [])
    return caught.value.code, capsys.readouterr().err


def fail_with(error: BaseException):
    def main(argv):
        raise error

    return main


class TestRun:
    def test_success(self, capsys):
        seen = []
        assert exit_of(seen.append, capsys) == (0, "")
        assert seen == [[]]

    @pytest.mark.parametrize(
        "error", [ValueError("interval 0\n  is  too small"), FileNotFoundError("interval 0 is too small")]
    )
    def test_what_a_user_can_cause_is_one_line(self, error, capsys, monkeypatch):
        monkeypatch.delenv("TAYLORSEER_TRACEBACK", raising=False)
        monkeypatch.setattr(sys, "argv", ["/somewhere/sample.py"])
        assert exit_of(fail_with(error), capsys) == (2, "sample.py: error: interval 0 is too small\n")

    def test_traceback_on_demand(self, monkeypatch):
        monkeypatch.setenv("TAYLORSEER_TRACEBACK", "1")
        with pytest.raises(ValueError, match="wrong"):
            run_command(fail_with(ValueError("wrong")), [])

    @pytest.mark.parametrize("kind", [RuntimeError, AssertionError, KeyError])
    def test_defects_keep_their_traceback(self, kind):
        with pytest.raises(kind):
            run_command(fail_with(kind("ours")), [])

    def test_interruption(self, capsys):
        code, text = exit_of(fail_with(KeyboardInterrupt()), capsys)
        assert code == 130
        assert text.startswith("interrupted")

    def test_as_a_process(self):
        script = (
            "from seerkit.cli import *\n"
            "def main(argv):\n"
            "    p = Parser('Draw.', 'draw.py --steps 2'); p.add_argument('--steps', type=positive_int, default=3)\n"
            "    print(p.parse_args(argv).steps)\n"
            "run_command(main)\n"
        )
        command = [sys.executable, "-c", script, "--steps", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "-c: error: argument --steps: 0 must be at least 1 (see --help)\n"


class TestParser:
    @pytest.fixture
    def parser(self):
        parser = Parser("Draw pictures.", "\npython draw.py --steps 2\npython draw.py --fast\n", prog="draw.py")
        parser.add_argument("--steps", type=positive_int, default=50, help="sampling steps")
        parser.add_argument("--fast", action="store_true", help="draw faster")
        parser.add_argument("--out", help="folder")
        parser.add_argument("--rate", default=2, help="rate, %(default)s by default")
        return parser

    def test_help(self, parser):
        text = parser.format_help()
        assert "sampling steps (default: 50)" in text
        assert "examples:\n  python draw.py --steps 2\n  python draw.py --fast" in text
        assert text.count("default: ") == 1

    @pytest.mark.parametrize("arguments", [["--ste", "3"], ["--steps", "x"], ["--steps"], ["extra"]])
    def test_errors_are_one_line(self, parser, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(arguments)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("draw.py: error: ")
        assert error.endswith("(see --help)\n")
        assert error.count("\n") == 1


class TestNumbers:
    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            (positive_int, "7", 7),
            (non_negative_int, "0", 0),
            (positive_float, "1e-3", 1e-3),
            (positive_float, "2", 2.0),
            *((true_or_false, text, True) for text in ("True", "true", "YES", "1")),
            *((true_or_false, text, False) for text in ("False", "false", "No", "0")),
        ],
    )
    def test_accepted(self, kind, text, value):
        assert kind(text) == value
        assert type(kind(text)) is type(value)

    @pytest.mark.parametrize(
        ("kind", "text", "message"),
        [
            (positive_int, "0", "0 must be at least 1"),
            (positive_int, "-3", "-3 must be at least 1"),
            (positive_int, "1.5", "'1.5' is not an integer"),
            (positive_int, "", "'' is not an integer"),
            (non_negative_int, "-1", "-1 must be at least 0"),
            (non_negative_int, "x", "'x' is not an integer"),
            (positive_float, "0", "0 must be above 0 and finite"),
            (positive_float, "nan", "nan must be above 0 and finite"),
            (positive_float, "inf", "inf must be above 0 and finite"),
            (positive_float, "x", "'x' is not a number"),
            (true_or_false, "maybe", "'maybe' is neither True nor False"),
            (true_or_false, "", "'' is neither True nor False"),
        ],
    )
    def test_refused(self, kind, text, message):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value) == message


class TestDevice:
    def test_known(self):
        assert resolve_device("cpu") == torch.device("cpu")
        assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("gpu", "device 'gpu' is unknown; choose auto, cpu, cuda or cuda:N"),
            ("cuda:x", "device 'cuda:x' is unknown"),
            ("", "device '' is unknown"),
            ("meta", "device 'meta' is not supported"),
            ("cuda:99", r"device 'cuda:99' is not there \(\d+ CUDA devices found\); use --device cpu"),
        ],
    )
    def test_refused(self, name, message):
        with pytest.raises(ValueError, match=message):
            resolve_device(name)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
    def test_no_cuda(self):
        with pytest.raises(ValueError, match=r"device 'cuda' is not there \(0 CUDA devices found\)"):
            resolve_device("cuda")

    def test_alone(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        world = start_world("cpu")
        assert (world.rank, world.size, world.device.type, world.is_main) == (0, 1, "cpu", True)
        world.barrier()
        stop_world()


class TestFiles:
    def test_success_and_permissions(self, tmp_path):
        with written_whole(tmp_path / "new" / "a.png") as temporary:
            assert temporary.parent == tmp_path / "new"
            assert temporary.name.endswith(".partial.png")
            temporary.write_text("new")
            assert not (tmp_path / "new" / "a.png").exists()
        assert (tmp_path / "new" / "a.png").read_text() == "new"
        plain = tmp_path / "plain"
        plain.touch()
        assert stat.S_IMODE((tmp_path / "new" / "a.png").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
        assert len(list((tmp_path / "new").iterdir())) == 1

    def test_failure_keeps_the_old_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")

        def fail():
            with written_whole(path) as temporary:
                temporary.write_text("half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_json(self, tmp_path):
        write_json(tmp_path / "a.json", {"name": "é", "values": [1, 2]})
        text = (tmp_path / "a.json").read_text()
        assert json.loads(text) == {"name": "é", "values": [1, 2]}
        assert "é" in text
        assert text.endswith("}\n")
        with pytest.raises(TypeError):
            write_json(tmp_path / "a.json", {"name": object()})
        assert (tmp_path / "a.json").read_text() == text

    def test_writable_directory(self, tmp_path):
        assert writable_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        assert list((tmp_path / "a" / "b").iterdir()) == []
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(
                ValueError, match=rf"output directory {path} cannot be written \(.+\); choose another one"
            ):
                writable_directory(path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_directory_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(ValueError, match="Permission denied"):
            writable_directory(tmp_path)
