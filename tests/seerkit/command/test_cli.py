import argparse
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache_dic import UserError
from seerkit.command.cli import (
    Parser,
    device_name,
    guidance_weight,
    integer,
    json_file,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run_command,
    share,
    true_or_false,
)
from seerkit.devices.distributed import resolve_device, start_world, stop_world
from seerkit.io.files import writable_directory, write_json, written_whole

ROOT = Path(__file__).parents[3]
COMMANDS = sorted(
    file
    for root in ("TaylorSeer*", "eval", "common")
    for file in ROOT.glob(f"{root}/**/*.py")
    if "run_command(main)" in file.read_text(encoding="utf-8")
)


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
        "error", [UserError("interval 0\n  is  too small"), FileNotFoundError("interval 0 is too small")]
    )
    def test_what_a_user_can_cause_is_one_line(self, error, capsys, monkeypatch):
        monkeypatch.delenv("TAYLORSEER_TRACEBACK", raising=False)
        monkeypatch.setattr(sys, "argv", ["/somewhere/sample.py"])
        assert exit_of(fail_with(error), capsys) == (2, "sample.py: error: interval 0 is too small\n")

    @pytest.mark.parametrize("error", [ValueError("not a user's"), RuntimeError("not this"), KeyError("not that")])
    def test_a_defect_keeps_its_traceback(self, error, monkeypatch):
        monkeypatch.delenv("TAYLORSEER_TRACEBACK", raising=False)
        with pytest.raises(type(error), match="not"):
            run_command(fail_with(error), [])

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("Storage size calculation overflowed with sizes=[1]"),
            OSError(errno.ENOSPC, "No space left on device"),
        ],
        ids=["host", "cuda", "cpu", "overflow", "disk"],
    )
    def test_what_cannot_be_had_is_one_line_with_a_remedy(self, error, capsys, monkeypatch):
        monkeypatch.delenv("TAYLORSEER_TRACEBACK", raising=False)
        code, err = exit_of(fail_with(error), capsys)
        assert code == 2
        assert err.count("\n") == 1
        assert "what is finished is kept" in err or "what was finished is kept" in err

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

    @pytest.mark.slow
    def test_as_a_process(self):
        script = (
            "from seerkit.command.cli import *\n"
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

    def test_help_has_defaults_of_zero_other_names_and_sections_in_their_order(self, parser):
        parser.section("output").add_argument("--out-dir", "--out-folder", help="where to")
        parser.section("model").add_argument("--seed", type=non_negative_int, metavar="N", default=0, help="of it all")
        lines = [" ".join(line.split()) for line in parser.format_help().splitlines()]
        model, seed, output = (lines.index(line) for line in ("model:", "--seed N of it all (default: 0)", "output:"))
        assert model < seed < output
        assert "--out-dir OUT_DIR where to [also --out-folder]" in lines
        assert "device:" not in lines, "of which there is no flag"

    def test_underscores_are_taken_for_hyphens_in_flags_alone(self, parser):
        parser.add_argument("--num-steps", type=positive_int)
        parser.add_argument("--in-turn", action=argparse.BooleanOptionalAction)
        given = parser.parse_args(["--num_steps=4", "--no-in_turn", "--out", "a_b"])
        assert (given.num_steps, given.in_turn, given.out) == (4, False, "a_b")
        assert parser.parse_args(["--num_steps", "5", "--out=--a_b"]).out == "--a_b"

    @pytest.mark.parametrize(("first", "second"), [("--seed", "--base-seed"), ("--base_seed", "--seed")])
    def test_two_spellings_of_one_flag_are_refused(self, parser, capsys, first, second):
        parser.add_argument("--seed", "--base-seed", type=int)
        assert parser.parse_args([first, "1", first, "2"]).seed == 2, "as in any command"
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([first, "1", f"{second}=2"])
        hyphenated = first.replace("_", "-")
        assert f"argument {second}: the same as {hyphenated}; give one of them" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flag", "told"),
        [
            ("--step", "unrecognized arguments: --step 3; did you mean --steps?"),
            ("--step=3", "unrecognized arguments: --step=3 3; did you mean --steps?"),
            ("--num_videos", "unrecognized arguments: --num_videos 3"),
            ("--name", "unrecognized arguments: --name 3"),
            ("--old_speed", "--old-speed is not taken here: give --fast"),
            ("--old-speed=2", "--old-speed is not taken here: give --fast"),
        ],
    )
    def test_an_unknown_flag_is_explained_or_a_near_one_named(self, parser, flag, told, capsys):
        parser.add_argument("--video-size")
        parser.add_argument("--ae")
        parser.not_taken = {"--old-speed": "give --fast"}
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([flag, "3"])
        assert capsys.readouterr().err == f"draw.py: error: {told} (see --help)\n"

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
            (positive_float, "1e12", 1e12),
            (positive_int, "+7", 7),
            (positive_int, "2147483647", 2**31 - 1),
            (non_negative_int, "9223372036854775807", 2**63 - 1),
            (integer(2, 4), "4", 4),
            (guidance_weight, "1e9", 1e9),
            (guidance_weight, ".5", 0.5),
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
            (positive_int, "2147483648", "2147483648 must be at most 2147483647"),
            (positive_int, "99999999999999999999", "99999999999999999999 must be at most 2147483647"),
            (positive_int, "9" * 5000, f"'{'9' * 40}' is not an integer"),
            (positive_int, "9" * 50, f"{'9' * 40} must be at most 2147483647"),
            (non_negative_int, "9223372036854775808", "9223372036854775808 must be at most 9223372036854775807"),
            (integer(2, 4), "1", "1 must be at least 2"),
            (integer(2, 4), "5", "5 must be at most 4"),
            *(
                (kind, text, f"{text!r} is not an integer")
                for kind in (positive_int, non_negative_int)
                for text in ("1_000", " 1", "1 ", "1\n", "١", "１", "1e3", "0x1", "nan", "--1")
            ),
            *(
                (kind, text, f"{text!r} is not a number")
                for kind in (positive_float, guidance_weight)
                for text in ("1_000.0", " 1", "1.5 ", "١", "", "1,5", "0x1p3")
            ),
            (positive_float, "1e308", "1e308 must be at most 1000000000000"),
            (positive_float, "1e309", "1e309 must be above 0 and finite"),
            (positive_float, "-0.0", "-0.0 must be above 0 and finite"),
            (positive_float, "-inf", "-inf must be above 0 and finite"),
            (guidance_weight, "1e308", "1e308 must be at most 1000000000"),
            (guidance_weight, "0", "0 must be above 0 and finite"),
            (guidance_weight, "nan", "nan must be above 0 and finite"),
            (non_negative_float, "-1", "-1 must be at least 0 and finite"),
            (non_negative_float, "nan", "nan must be at least 0 and finite"),
            (non_negative_float, "1e308", "1e308 must be at most 1000000000000"),
            (share, "1", "1 must lie in [0, 1)"),
            (share, "nan", "nan must lie in [0, 1)"),
            (share, "-0.1", "-0.1 must lie in [0, 1)"),
            (share, "abc", "'abc' is not a number"),
            (device_name, "gpu", "device 'gpu' is unknown; choose auto, cpu, cuda or cuda:N"),
            (device_name, "cuda:", "device 'cuda:' is unknown; choose auto, cpu, cuda or cuda:N"),
            (device_name, "cuda:-1", "device 'cuda:-1' is unknown; choose auto, cpu, cuda or cuda:N"),
            (device_name, "cpu:1", "device 'cpu:1' is unknown; choose auto, cpu, cuda or cuda:N"),
            (device_name, "cuda:١", "device 'cuda:١' is unknown; choose auto, cpu, cuda or cuda:N"),
            (device_name, "", "device '' is unknown; choose auto, cpu, cuda or cuda:N"),
            (json_file, "picture.png", "'picture.png' must end in .json"),
            (json_file, "", "'' must end in .json"),
            (true_or_false, "maybe", "'maybe' is neither True nor False"),
            (true_or_false, "", "'' is neither True nor False"),
        ],
    )
    def test_refused(self, kind, text, message):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert str(caught.value) == message


@pytest.mark.parametrize("flag", ["--seed", "--name", "--several"])
def test_two_dashes_behind_an_equals_sign_are_no_value(flag, capsys):
    """For which ArgumentParser gives an empty list."""
    parser = Parser("Sample.", "sample.py", prog="sample.py")
    parser.add_argument("--seed", type=non_negative_int)
    parser.add_argument("--name")
    parser.add_argument("--several", nargs="+")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"{flag}=--"])
    assert capsys.readouterr().err == f"sample.py: error: argument {flag}: -- is no value (see --help)\n"
    assert parser.parse_args(["--name=a=--"]).name == "a=--"


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


ENVIRONMENT = """
import os, sys
import seerkit.environment
print(os.environ.get("MKL_CBWR"), os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, "AUTO,STRICT 3000 False"),
        ({"GOMP_SPINCOUNT": "7"}, "AUTO,STRICT 7 False"),
        ({"OMP_WAIT_POLICY": "passive"}, "AUTO,STRICT None False"),
        ({"MKL_CBWR": "COMPATIBLE"}, "COMPATIBLE 3000 False"),
    ],
)
def test_the_environment_is_settled_before_torch_is_loaded(given, settled):
    names = ("MKL_CBWR", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == settled


UP_TO_TORCH = """
import importlib.abc, os, runpy, sys

class UpToTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("MKL_CBWR"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, UpToTorch())
runpy.run_path(sys.argv[1], run_name="imported")
print(os.environ.get("MKL_CBWR"))
"""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_settle_it_before_torch(command):
    """The order of summation is read once, when torch loads MKL."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_TORCH, command], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "AUTO,STRICT"


def test_what_was_parsed_knows_its_command_line_and_does_not_count_it(monkeypatch):
    parser = Parser("Do it.", "do")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(["--seed=3"])
    assert (given.command_line, vars(given)) == (["--seed=3"], {"seed": 3})
    monkeypatch.setattr("sys.argv", ["/a/place/do.py", "--seed", "4"])
    assert parser.parse_args().command_line == ["--seed", "4"]
