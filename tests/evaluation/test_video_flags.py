"""The flags of the commands that make videos: one name for each thing, the official spellings beside it, and no torch."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import hunyuan_video.flags
import wan.flags
from evaluation.video_flags import add_video_flags, list_samples
from seerkit.command.cli import Parser

ROOT = Path(__file__).resolve().parents[2]
HUNYUAN, WAN = hunyuan_video.flags, wan.flags
SCRIPTS = {HUNYUAN: "TaylorSeer-HunyuanVideo/sample_video.py", WAN: "TaylorSeer-Wan2.1/generate.py"}
commands = pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: command.__name__.partition(".")[0])

SPELLINGS = [  # of a command, officially, and here
    (HUNYUAN, "--dit-weight x.pt", "--ckpt x.pt"),
    (HUNYUAN, "--infer-steps 7", "--num-steps 7"),
    (HUNYUAN, "--embedded-cfg-scale 5", "--guidance-scale 5"),
    (HUNYUAN, "--flow-shift 4", "--shift 4"),
    (HUNYUAN, "--video-length 4", "--num-frames 4"),
    (HUNYUAN, "--video-size 16 24", "--height 16 --width 24"),
    (HUNYUAN, "--save-path out", "--output-dir out"),
    (HUNYUAN, "--use-fp8", "--fp8"),
    (HUNYUAN, "--use-cpu-offload", "--offload"),
    (WAN, "--task debug --ckpt x", "--model wan-debug --ckpt x"),
    (WAN, "--task t2v-1.3B", "--model wan-t2v-1.3B"),
    (WAN, "--task t2v-14B", "--model wan-t2v-14B"),
    (WAN, "--task i2v-14B --image {image}", "--model wan-i2v-14B --image {image}"),
    (WAN, "--task t2v-14B --size 480*832", "--model wan-t2v-14B --height 832 --width 480"),
    (WAN, "--size 24*16", "--height 16 --width 24"),
    (WAN, "--ckpt_dir x", "--ckpt x"),
    (WAN, "--frame_num 4", "--num-frames 4"),
    (WAN, "--sample_solver dpm++", "--solver dpm++"),
    (WAN, "--sample_steps 7", "--num-steps 7"),
    (WAN, "--sample_shift 4", "--shift 4"),
    (WAN, "--sample_guide_scale 4", "--guidance-scale 4"),
    (WAN, "--base_seed 7", "--seed 7"),
    (WAN, "--ulysses_size 2", "--ulysses-degree 2"),
    (WAN, "--ring_size 2", "--ring-degree 2"),
    (WAN, "--ring_size 2 --dit_fsdp", "--ring-degree 2 --dit-fsdp"),
]


def parser_of(command: ModuleType) -> Parser:
    parser = Parser("Make videos.", "")
    command.add_flags(parser)
    add_video_flags(parser, command.ALSO, family="fake", quality=5)
    return parser


def parsed(command: ModuleType, *flags: str) -> dict[str, Any]:
    """What flags ask for, by attribute; a size in one flag is in height and width by now."""
    args = parser_of(command).parse_args(flags)
    command.fill_defaults(args)
    return {name: value for name, value in vars(args).items() if name not in ("size", "video_size")}


@pytest.fixture
def image(tmp_path) -> Path:
    """A picture of 640 x 480 pixels, upright."""
    Image.new("RGB", (480, 640), "teal").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(("command", "official", "ours"), SPELLINGS)
def test_official_spellings_mean_the_same(command, official, ours, image):
    asked = parsed(command, *ours.format(image=image).split())
    assert asked != parsed(command)
    for mark in "-_":
        flags = official.format(image=image).split()
        spelt = [
            flag[:2] + flag[2:].replace("_", "-").replace("-", mark) if flag[:2] == "--" else flag for flag in flags
        ]
        assert parsed(command, *spelt) == asked


def test_every_official_spelling_stands_in_the_table():
    for command in SCRIPTS:
        official = {flag for names in command.ALSO.values() for flag in names.split()}
        tried = {word.replace("_", "-") for one, flags, _ in SPELLINGS if one is command for word in flags.split()}
        assert official <= tried


def test_the_commands_call_what_they_share_the_same():
    hunyuan, wan_ = parsed(HUNYUAN), parsed(WAN)
    assert {*hunyuan} - {*wan_} == {"vae_tiling", "llm", "flow_reverse", "fp8", "offload"}
    assert {*wan_} - {*hunyuan} == {
        "t5", "image", "negative_prompt", "solver", "batched_guidance", "t5_cpu", "offload_model", "t5_fsdp",
        "guidance_parallel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "model", "size"),
    [
        ("--model wan-i2v-14B", "wan-i2v-14B-720P", (816, 1104)),
        ("--model wan-i2v-14B --size 720*1280", "wan-i2v-14B-720P", (816, 1104)),
        ("--model wan-i2v-14B --size 832*480", "wan-i2v-14B-480P", (544, 720)),
        ("--model wan-i2v-14B --height 832 --width 480", "wan-i2v-14B-480P", (544, 720)),
        ("--model wan-i2v-14B-480P", "wan-i2v-14B-480P", (544, 720)),
        ("--task i2v-14B-720P --size 1280*720", "wan-i2v-14B-720P", (816, 1104)),
    ],
)
def test_a_size_chooses_the_model_of_image_to_video(flags, model, size, image):
    asked = parsed(WAN, *flags.split(), "--image", str(image))
    assert (asked["model"], asked["width"], asked["height"]) == (model, *size)
    assert asked["negative_prompt"].startswith("镜头晃动")
    assert asked["shift"] == (3 if model.endswith("480P") else 5)


@pytest.mark.parametrize("size", ["832", "832*480*3", "832*-480", "²*32", "*", ""])
def test_a_size_in_one_flag_is_two_numbers(size, capsys):
    with pytest.raises(SystemExit):
        parsed(WAN, "--size", size)
    assert f"argument --size: {size} is not WIDTH*HEIGHT, such as 832*480" in capsys.readouterr().err


@commands
def test_names_of_files_are_known_before_anything_is_loaded(command):
    flags = ["--prompt", "red ring still on navy", "--samples-per-prompt", "2", "--vbench"]
    args = parser_of(command).parse_args(flags)
    command.fill_defaults(args)
    prompts, names = list_samples(args, command.prompts_of(args))
    assert prompts == ["red ring still on navy"] * 2
    assert names == ["red ring still on navy-0", "red ring still on navy-1"]


WATCHED = """
import json, runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stop:
    print(json.dumps([stop.code, sorted({"torch", "PIL", "safetensors"} & {*sys.modules})]))
"""


@commands
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--help"], 0),
        (["--sed", "1"], 2),
        (["--prompt", "red unicorn"], 2),
        (["--num-frames", "17"], 2),
        (["--interval", "0"], 2),
        (["--name-file", "x"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_load_no_torch(command, flags, code):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, ROOT / SCRIPTS[command], *flags], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [code, []], done.stderr


@commands
def test_help_says_the_default_of_every_flag_that_takes_a_value(command):
    """And of switches that are on; those of the caches are tested with them."""
    parser = parser_of(command)
    unset = {"--prompt", "--image", "--embeddings", "--name-file", "--llm", "--clip", "--t5", "--size", "--video-size"}
    unset |= {"--save-file", "--offload-model", "--ulysses-degree", "--ring-degree"}
    shown = parser._get_formatter()._get_help_string
    groups = {group.title: group._group_actions for group in parser._action_groups if group._group_actions}
    assert [*groups][1:] == ["model", "prompts", "sampling", "caching", "output", "device", "several processes"]
    for title in {*groups} - {"caching", "options"}:
        for action in groups[title]:
            if action.nargs != 0 and action.option_strings[0] not in unset:
                assert "(default: " in shown(action), action.option_strings
