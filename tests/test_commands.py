"""All commands: --help at once and in sections, one name for each thing, and the official spellings beside it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache_dic import UserError
from evaluation.jobs import output_folder
from seerkit.command.cli import SECTIONS, Parser
from seerkit.weights import checkpoints
from seerkit.weights.missing import MissingError

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    str(file.relative_to(ROOT))
    for root in ("TaylorSeer*", "eval", "common")
    for file in ROOT.glob(f"{root}/**/*.py")
    if "run_command(main)" in file.read_text(encoding="utf-8")
)

# Run in a fresh interpreter: what a command's --help prints, and behind it, on the last line, what that took.
HELP = """
import atexit, json, runpy, sys, time
from seerkit.command.cli import Parser

parsers, format_help = [], Parser.format_help
Parser.format_help = lambda self: parsers.append(self) or format_help(self)

@atexit.register
def tell():
    (parser,) = parsers
    groups = [(g.title, [a.option_strings or [a.dest] for a in g._group_actions]) for g in parser._action_groups]
    print(json.dumps({
        "torch": "torch" in sys.modules,
        "seconds": time.process_time(),
        "sections": [(title, flags) for title, flags in groups if flags],
        "silent": [a.dest for a in parser._actions if not a.help],
    }))

sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once_and_says_something_of_every_flag_in_its_section(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELP, ROOT / command],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *text, told = done.stdout.splitlines()
    told = json.loads(told)
    assert text[0].startswith(f"usage: {Path(command).name} ")
    assert "examples:" in text
    assert not told["torch"]
    assert told["seconds"] < 1, "of processor time"
    assert told["silent"] == []
    (first, flags), *sections = told["sections"]
    assert (first, flags) == ("options", [["-h", "--help"]])
    titles = [title for title, _ in sections]
    in_order = [title for title in SECTIONS if title in titles]
    assert titles[: len(in_order)] == in_order, "and sections of its own behind them"
    assert [line.removesuffix(":") for line in text if line.removesuffix(":") in SECTIONS] == in_order
    assert list(tmp_path.iterdir()) == []


class Stopped(Exception):  # noqa: N818, nothing is wrong
    """A command with its flags parsed; carries what they ask for."""


@pytest.fixture
def parsed(load_command, monkeypatch) -> Callable[[str, str], dict[str, Any]]:
    """`parsed(command, flags)`: the attributes that its parser makes of a command line."""
    parse = Parser.parse_args

    def stop(self: Parser, *given: Any) -> None:
        raise Stopped(vars(parse(self, *given)))

    def attributes(command: str, flags: str) -> dict[str, Any]:
        with pytest.raises(Stopped) as caught:
            load_command(command).main(flags.split())
        return caught.value.args[0]

    monkeypatch.setattr(Parser, "parse_args", stop)
    return attributes


FLUX, HIDREAM, ONE = "TaylorSeer-FLUX/sample.py", "TaylorSeer-HiDream/sampling.py", "TaylorSeer-HiDream/inference.py"
TRAINING = [command for command in COMMANDS if command.endswith("/train.py")]


@pytest.mark.parametrize(
    ("command", "official", "canonical", "expected"),
    [
        (FLUX, "--model-name flux-dev", "--model flux-dev", {"model": "flux-dev"}),
        (FLUX, "--guidance 4", "--guidance-scale 4", {"guidance_scale": 4}),
        *(
            (command, *case)
            for command in (HIDREAM, ONE)
            for case in (
                ("--model-type full", "--model hidream-full", {"model": "hidream-full"}),
                ("--model-type dev", "--model hidream-dev", {"model": "hidream-dev"}),
                ("--model-type fast", "--model hidream-fast", {"model": "hidream-fast"}),
                ("--model-type tiny", "--model hidream-tiny", {"model": "hidream-tiny"}),
                ("--guidance 0", "--guidance-scale 0", {"guidance_scale": 0}),
                ("--num-inference-steps 7", "--num-steps 7", {"num_steps": 7}),
            )
        ),
        (HIDREAM, "--num-images-per-prompt 2", "--samples-per-prompt 2", {"samples_per_prompt": 2}),
        *((command, "--out x", "--output-dir x", {"out": Path("x")}) for command in TRAINING),
        *(
            (f"eval/{name}.py", *case)
            for name in ("benchmark", "flops")
            for case in (
                ("--frames 9", "--num-frames 9", {"num_frames": 9}),
                ("--cfg-scale 2", "--guidance-scale 2", {"guidance_scale": 2}),
                ("--num-samples 3", "--batch-size 3", {"batch_size": 3}),
            )
        ),
        (
            "common/emoji/prepare_data.py",
            "--packages p --out x",
            "--packages p --output-dir x",
            {"output_dir": Path("x")},
        ),
    ],
)
def test_official_spellings_are_other_names_of_the_same(parsed, command, official, canonical, expected):
    """With hyphens and with underscores."""
    found = parsed(command, canonical)
    assert found.items() >= expected.items()
    for line in (official, canonical):
        underscores = [word[:2] + word[2:].replace("-", "_") if word[:2] == "--" else word for word in line.split()]
        assert parsed(command, line) == parsed(command, " ".join(underscores)) == found


DIT, HUNYUAN, WAN = (
    "TaylorSeer-DiT/sample.py",
    "TaylorSeer-HunyuanVideo/sample_video.py",
    "TaylorSeer-Wan2.1/generate.py",
)
ALONE = "ulysses degree 2 does not divide the number of processes, 1"


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (DIT, "--num-steps 1001", "number of sampling steps 1001 must lie between 1 and 1000"),
        (FLUX, "--memory-limit-gib 0.00001", r"engine would keep 7\.50 MiB, but the limit is 10\.49 KiB;"),
        (HIDREAM, "--width 1024", r"positions for 64; .*; did you mean --model hidream-full\?$"),
        (ONE, "--height 1024 --width 1024", r"positions for 64; .*; did you mean --model hidream-full\?$"),
        (HUNYUAN, "--video-length 129", r"frames 129 must be .*; 130 is near; did you mean --model hunyuan-video\?$"),
        (HUNYUAN, "--ulysses-degree 2", ALONE),
        (HUNYUAN, "--dit-fsdp --ulysses-degree 1", "--dit-fsdp shares weights among processes, and this is one"),
        (WAN, "--frame_num 81 --size 1280*720", r"frames 81 must be .*; did you mean --model wan-t2v-14B\?$"),
        (WAN, "--ulysses-degree 2", ALONE),
        (WAN, "--t5-cpu --save-file x.gif", "--t5-cpu has no effect on wan-tiny"),
        (WAN, "--prompt star --save-file x.gif", "--save-file x.gif is an MP4"),
    ],
)
def test_what_is_refused_without_looking_at_files_is_refused_by_a_plan_too(
    load_command, tmp_path, monkeypatch, command, flags, message
):
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--dry-run",)):
        with pytest.raises(UserError, match=message):
            load_command(command).main([*flags.split(), *more])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            DIT,
            "--image-size 256",
            r"no weights are published for fashion-mnist at 256 .*; did you mean --model DiT-XL/2\?$",
        ),
        (
            DIT,
            "--model DiT-S/8",
            r"no weights are published for DiT-S/8, only for DiT-XL/2 at 256 and 512 .* by --ckpt$",
        ),
        (
            FLUX,
            "--model flux-debug",
            "no weights are published for flux-debug, only for flux-dev, flux-schnell, flux-tiny;",
        ),
    ],
)
def test_a_plan_needs_no_weights_and_says_that_a_run_would(load_command, capsys, command, flags, message):
    with pytest.raises(UserError, match=message):
        load_command(command).main(flags.split())
    load_command(command).main([*flags.split(), "--dry-run"])
    out, err = capsys.readouterr()
    assert json.loads(out)["batch"]
    assert re.search("note: " + message, err, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "flags", "remedy"),
    [
        (FLUX, "--name flux-dev", "--name is not taken here: give --model flux-dev"),
        (
            HUNYUAN,
            "--model_base ckpts",
            "--model-base is not taken here: name files and folders by --ckpt, --vae, --llm and",
        ),
        (
            HUNYUAN,
            "--cfg-scale 1.0",
            "--cfg-scale is not taken here: the model has distilled guidance alone, --guidance-scale",
        ),
        (HUNYUAN, "--num-videos 1", "--num-videos is not taken here: give --samples-per-prompt"),
        (WAN, "--use_prompt_extend", "--use-prompt-extend is not taken here: lengthen the prompts yourself"),
    ],
)
def test_official_flags_without_a_counterpart_come_with_a_remedy(load_command, capsys, command, flags, remedy):
    with pytest.raises(SystemExit, match="2"):
        load_command(command).main(flags.split())
    assert remedy in capsys.readouterr().err


def test_the_official_name_of_hunyuan_video_is_another_name_of_it(parsed):
    assert parsed(HUNYUAN, "--model HYVideo-T/2-cfgdistill")["model"] == "hunyuan-video"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (DIT, "--model DiT-XL/2 --image-size 256"),
        ("TaylorSeer-DiT/sample_ddp.py", "--model DiT-XL/2 --image-size 256"),
        (FLUX, "--model flux-dev --prompt fox"),
        (ONE, "--model hidream-full --prompt fox --output new/folder/fox.png"),
        (WAN, "--model wan-t2v-1.3B --prompt fox"),
    ],
)
def test_a_run_that_is_refused_for_its_weights_leaves_no_folder_and_says_nothing_else(
    load_command, without_checkpoints, tmp_path, monkeypatch, capsys, command, flags
):
    def fail(_: object) -> None:
        raise OSError("no network")

    without_checkpoints("DIT_CHECKPOINT", "FLUX_DEV", "AE", "HIDREAM_FULL", "HIDREAM_VAE", "WAN_T2V_1_3B", "WAN_VAE")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoints, "_download", fail)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MissingError):
        load_command(command).main([*flags.split(), "--device", "cpu"])
    assert list((tmp_path / "here").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_default_folder_is_one_folder_whatever_the_name_of_the_model():
    assert output_folder(None, "dit", {"model": "DiT-XL/2"}).parent == Path("outputs/dit")


def help_of(load_command, capsys, command: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        load_command(command).main(["--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_does_not_list_what_is_refused(load_command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # names are not wrapped
    for command, refused in (
        ("eval/flops.py", ("--compare", "--telemetry", "--memory-limit-gib")),
        ("eval/benchmark.py", ("--compare", "--telemetry", "--engine")),
    ):
        text = help_of(load_command, capsys, command)
        assert [flag for flag in refused if f" {flag} " in text.partition(" examples: ")[0]] == []
        assert "wan-debug, hidream-debug (default: DiT-XL/2)" in text, "those for tests behind the others"


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (DIT, "one of DiT-XL/2, DiT-S/2, DiT-S/4, "),
        (
            FLUX,
            "one of flux-dev, flux-schnell, flux-tiny, flux-debug; flux-tiny is the embedded model, flux-debug a tiny one",
        ),
        (
            WAN,
            "wan-i2v-14B-720P, wan-i2v-14B, wan-tiny, wan-debug; wan-tiny is the embedded model, wan-debug a tiny one for",
        ),
    ],
)
def test_help_lists_official_models_first(load_command, capsys, monkeypatch, command, names):
    monkeypatch.setenv("COLUMNS", "2000")
    text = help_of(load_command, capsys, command)
    assert names in text
    assert ", …)" not in text
    assert "--max-order N highest Taylor order" in text
    assert "--memory-limit-gib GIB most that" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flags", "label", "full_steps"),
    [
        (DIT, "--model DiT-XL/2 --image-size 256", "taylorseer-N4-W2-O4", "[ 0, 1, 5, 9, 13,"),
        (FLUX, "--model flux-dev", "taylorseer-N6-W3-O2", "[ 0, 1, 2, 8, 14,"),
        (HIDREAM, "--model hidream-dev", "taylorseer-N4-W1-O2", "[ 0, 4, 8,"),
        (WAN, "--model wan-t2v-1.3B", "taylorseer-N5-W1-O1", "[ 0, 5, 10,"),
    ],
)
def test_a_plan_needs_no_prompt_and_its_lists_stay_on_their_lines(
    load_command, capsys, command, flags, label, full_steps
):
    load_command(command).main([*flags.split(), "--dry-run"])
    out = capsys.readouterr().out
    assert label in json.loads(out)["batch"]
    assert full_steps in out
