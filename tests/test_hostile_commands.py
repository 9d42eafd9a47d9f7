"""Hostile command lines: every command, drawn from a seed, ends in success or in one clear line with exit code 2.

HOSTILE_CASES (default: 216) and HOSTILE_SEED (default: 0) choose how many and which; HOSTILE_ONLY is part of a script's name:

    HOSTILE_CASES=5000 HOSTILE_SEED=7 python -m pytest tests/test_hostile_commands.py -n 2
"""

import argparse
import gzip
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dit
import flux
import hidream
import hunyuan_video
import wan
from seerkit.command.cli import Parser
from seerkit.weights.checkpoints import export_safetensors

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "tests" / "hostile_runner.py"
CASES = int(os.environ.get("HOSTILE_CASES", 216))
SEED = int(os.environ.get("HOSTILE_SEED", 0))
LIMIT_S = float(os.environ.get("HOSTILE_LIMIT_S", 60))
CHUNKS = 4  # that workers share

IMAGES = "--interval 2 --prompt fox"
VIDEOS = "--interval 2 --prompt 'red star moving left on black'"
TRAINING = (
    "--steps 2 --batch-size 4 --lr-warmup-steps 1 --log-every 1 --save-every 1 --grid-every 100 --device cpu"
    " --output-dir out"
)
BASES = {
    "TaylorSeer-DiT/sample.py": "--model debug --ckpt {dit} --num-sampling-steps 3 --classes 0 --per-class 1 --out out",
    "TaylorSeer-DiT/sample_ddp.py": "--model debug --ckpt {dit} --num-sampling-steps 3 --num-fid-samples 2"
    " --per-proc-batch-size 2 --sample-dir out",
    "TaylorSeer-DiT/train.py": f"--model debug --data {{clothes}} {TRAINING}",
    "TaylorSeer-FLUX/sample.py": f"--model flux-debug --ckpt {{flux}} --num-steps 3 --output-dir out {IMAGES}",
    "TaylorSeer-FLUX/train.py": f"--model flux-debug --data {{emoji}} {TRAINING}",
    "TaylorSeer-HiDream/inference.py": "--model hidream-debug --ckpt {hidream} --num-steps 3 --output out/fox.png --prompt fox",
    "TaylorSeer-HiDream/sampling.py": f"--model hidream-debug --ckpt {{hidream}} --num-steps 3 --output-dir out {IMAGES}",
    "TaylorSeer-HiDream/train.py": f"--model hidream-debug --data {{emoji}} {TRAINING}",
    "TaylorSeer-HunyuanVideo/sample_video.py": "--model hunyuan-debug --ckpt {hunyuan} --num-steps 3"
    f" --num-frames 4 --output-dir out {VIDEOS}",
    "TaylorSeer-HunyuanVideo/train.py": f"--model hunyuan-debug {TRAINING}",
    "TaylorSeer-Wan2.1/generate.py": "--model wan-debug --ckpt {wan} --num-steps 3 --num-frames 4"
    f" --output-dir out {VIDEOS}",
    "TaylorSeer-Wan2.1/train.py": f"--model wan-debug {TRAINING}",
    "common/emoji/prepare_data.py": "--packages in/folder --output-dir out --size 16 --no-text",
    "eval/beyond.py": "--model flux-debug --ckpt {flux} --num-steps 4 --calibrations in/loopseer.json --budgets 2"
    " --num-samples 2 --rivals 0 --device cpu --output-dir out",
    "eval/benchmark.py": "--model debug --device cpu --num-steps 4 --interval 2 --repeats 1 --dropped 0 --out out/b.json",
    "eval/busy_machine.py": "--spins 1000 --neighbours 0 --repeats 1 --out out/busy.json",
    "eval/calibrate.py": "--model debug --ckpt {dit} --num-steps 7 --samples 1 --out out/c.json --device cpu",
    "eval/compare.py": "--model debug --ckpt {dit} --num-steps 3 --classes 0 --methods fora --output-dir out",
    "eval/figures.py": "measure --model debug --ckpt {dit} --num-steps 4 --samples 1 --output-dir out --device cpu",
    "eval/flops.py": "--model debug --num-steps 4 --interval 2 --out out/flops.json",
    "eval/method_costs.py": "--model flux-debug --methods fora --threads 1 --out out/costs.json",
    "eval/nearest.py": "in/samples --label uncached --data {emoji} --shown 2 --out out/near",
    "eval/op_counts.py": "--depth 1 --max-order 1 --out out/ops.json",
    "eval/partial_steps.py": "--model flux-debug --methods toca --repeats 1 --dropped 0 --threads 1 --device cpu"
    " --out out/steps.json",
    "eval/plot.py": "pareto in/samples/record.json --out out/plot.png",
    "eval/schedule_gains.py": "--model flux-debug --ckpt {flux} --num-steps 3 --samples 1 --device cpu"
    " --schedules in/schedule.json --out out/gains.json",
    "eval/calibrate_loopseer.py": "--model flux-debug --ckpt {flux} --num-steps 5 --full-steps 2 --samples 1 --lists 5"
    " --max-order 1 --fit none --width 16 --height 16 --device cpu --out out/loop.json",
    "eval/search_schedule.py": "--model flux-debug --ckpt {flux} --num-steps 4 --full-steps 2 --samples 1 --lists 3"
    " --device cpu --out out/found.json",
    "eval/track.py": "--model wan-tiny --per-motion 1 --device cpu --work out --dry-run",
    "eval/measure_gpu.py": "--device cpu --tiny --list --output-dir out --results out",
    "eval/validate_measures.py": "--model fashion-mnist --num-samples 20 --dry-run --work out --out out/valid.json",
    "eval/reproduce.py": "hidream --rows uncached --estimate --output-dir out",
    "eval/score.py": "in/samples/uncached --measures psnr --pairs in/samples/uncached --allow-duplicates --work out",
    "eval/report.py": "--results {results} --runs in --out out/report",
    "TaylorSeers-Diffusers/run.py": "--interval 2 --prompt 'red apple, noto' --num-steps 3 --device cpu --output-dir out",
    "TaylorSeers-xDiT/run_flux.py": "--model in/folder --prompt fox --interval 2 --num-steps 3 --output-dir out --dry-run",
    "TaylorSeers-xDiT/run_hunyuan.py": "--model in/folder --prompt fox --num-frames 5 --output-dir out --dry-run",
    "TaylorSeers-xDiT/run_wan.py": "--model in/folder --prompt fox --num-frames 5 --output-dir out --dry-run",
    "eval/compare_fronts.py": "--sizes flux-tiny --num-steps 10 --repeats 1 --dropped 0 --no-compile --out out/fronts.json",
    "eval/tables.py": "--results {results} --readme in/README.md",
    "eval/train_classifier.py": "--data {clothes} --out out/c.safetensors --epochs 1 --batch-size 16 --device cpu",
    "eval/train_scorer.py": "--data {emoji} --out out/s.safetensors --features {features} --steps 1 --batch-size 8"
    " --device cpu",
    "eval/weights/prepare_squeezenet.py": "in/garbage --out out/squeezenet.safetensors",
    "eval/vbench.py": f"in/folder --full-info {ROOT}/eval/vbench_embedded.json --dry-run --out out/vbench.json",
}
"""By command, flags of a run that takes little; {names} are of `materials`."""
SLOW = {"eval/busy_machine.py": 1.0, "eval/compare_fronts.py": 1.0, "eval/op_counts.py": 1.0, "eval/benchmark.py": 0.8}
"""Commands whose good runs take seconds, and the share of their command lines that are only refused numbers."""
OF_DOWNLOADS = {"common/emoji/prepare_data.py", "eval/validate_measures.py", "eval/weights/prepare_squeezenet.py"}
"""Commands that a good run of needs what was downloaded."""
AFFORDED = {"debug", "flux-debug", "hidream-debug", "hunyuan-debug", "wan-debug", "flux-dev", "hidream-full"}
"""Models that the commands which make weights are tried with: the small ones, and two that do not fit."""
LEFT_OUT = {"--compile", "--against-diffusers", "--check"}
"""Flags that take minutes where they work, or answer by exit code 1; they have tests of their own."""

NUMBERS = (
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e308", "1e-320", "9" * 20, "9" * 400, "2147483648", "", "abc", "٣", " 4",
    "1_000", "0x10", "+3", "1e3", "True", "None", "--", "1,2", "1e999",
)  # fmt: skip
ORDINARY_NUMBERS = ("1", "2", "3", "4", "5", "7", "8", "16", "17", "0.5", "2.0", "1e-3")
TEXTS = (
    "🦊", "x" * 5000, "two\nlines", "-dash", "--", "", " ", "a/b", "../..", "\x7f\x1b[31m", "%s %d {} {0}", "$(ls)", "None",
    "\udcff\udcfe", "שלום", "a\tb", "CON", "ا" * 130, "fox", "red apple, noto", "red ring still on navy", "nan", "😀" * 70,
)  # fmt: skip
TEXTS_BY_FLAG = {
    "device": ("cpu", "auto", "cuda", "cuda:99", "cuda:-1", "cpu:1", "meta", "mps", "gpu", "CPU", ""),
    "method": ("taylorseer", "newton", "fora", "uncached", "mine", "Taylorseer", "../x", ""),
    "set": (
        "max_order=abc", "max_order=1.5", "max_order=nan", "max_order=", "=1", "max_order", "max_order=1", "nosuch=1",
        "full_steps=0,1", "interval=2", "interval=0", "warmup_steps=99999999999999999999", "engine=stack", "schedule=fora",
        "max_order=1=2", "group_bytes=1", "group_bytes=-1", "telemetry=True", "strength=2", "strength=nan", "max_order=-1",
    ),
    "full_steps": (
        "0", "0,1", "0,1,2", "1,2", "0,0", "2,1,0", "0,99", "0,,1", "0,-1", "0;1", "a", "", "0,1.5", "0," + "9" * 30,
    ),
    "classes": (
        "0", "0,1", "99", "-1", "0,0", "sandal", "0,sandal", "", ",", "1.5", "0," * 2000 + "0", "9" * 5000, "٣", "²",
    ),
    "schedule": (
        "fora", "diffusers", "explicit", "searched", "Fora", "", "in/schedule.json", "in/other-steps.json", "in/list.json",
        "in/missing.json", "in/folder.json", "in/empty.json", "in/schema.json", "in/nested.json", "in/garbage", ".json",
        "x" * 300 + ".json", "🦊.json", "in/schedule.json/x.json",
    ),
    "size": (
        "32*32", "16*16", "32x32", "32", "0*0", "-1*32", "33*31", "99999*99999", "1e3*32", "32*32*32", "", "²*32",
        "32*" + "9" * 5000,
    ),
    "quality": ("0", "8", "10", "11", "-1", "lossless", "best", "nan", "1.5", ""),
    "offload_model": ("True", "False", "maybe", "", "1"),
    "vae": ("ema", "mse", "nosuch", "in/folder", "", "../x"),
    "readme": ("in/README.md", "in/folder", "in/garbage", "in/missing", "in/empty"),
}  # fmt: skip
"""What is tried for flags of text with a form of their own."""
PLUGINS = {
    "good": "{method}",
    "future": "from __future__ import annotations\n{method}",
    "syntax": "def broken(:\n",
    "empty": "",
    "exits": "import sys\nsys.exit(0)\n",
    "raises": "raise RuntimeError('two\\nlines')\n",
    "imports": "import no_such_module\n",
    "recursion": "def f():\n    f()\nf()\n",
    "prints": "print('x' * 10**6)\n",
    "binary": "\udcff\udcfe\0",
}
METHOD = """from dataclasses import dataclass
from cache_dic import register

@register({name!r})
@dataclass(frozen=True, kw_only=True)
class Mine:
    strength: float = 1.0

    def weights(self, full_steps, step):
        {body}
"""
BODIES = {
    "mine": "return (1.0,)",
    "nan": "return (float('nan'),)",
    "huge": "return (1e300,)",
    "text": "return 'text'",
    "none": "return None",
    "deep": "return self.weights(full_steps, step)",
    "exit": "raise SystemExit(3)",
    "crash": "return 1 / 0",
    "long": "return (1.0,) * 1000",
    "many": "return [1.0] * 2",
    "loud": "print('y' * 10**6); return (1.0,)",
    "assertion": "assert False",
    "memory": "raise MemoryError",
    "stop": "raise StopIteration",
}


# -------------------------------------------------------------------------------------------------------------- materials


def random_weights(model: nn.Module, path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    export_safetensors(path, model.state_dict())
    return path


def write_clothes(folder: Path) -> Path:
    """50 images to train on and 20 to test, in the files of Fashion-MNIST."""
    folder.mkdir()
    for prefix, count in (("train", 50), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.full((count, 28, 28), 20, np.uint8) * labels[:, None, None]
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def enlarged(emoji: Path, folder: Path) -> Path:
    """A set of emoji at the 32 pixels that the commands take, of one at 8."""
    shutil.copytree(emoji, folder)
    with np.load(folder / "emoji-32.npz") as data:
        arrays = dict(data)
    np.savez(folder / "emoji-32.npz", **arrays | {"images": arrays["images"].repeat(4, 1).repeat(4, 2)})
    return folder


def write_inputs(folder: Path, checkpoint: Path) -> None:
    """Files of many kinds, most of them broken, in a folder that a case gets a copy of."""
    (folder / "folder").mkdir(parents=True)
    (folder / "folder.json").mkdir()
    (folder / "empty").touch()
    (folder / "empty.json").touch()
    (folder / "garbage").write_bytes(bytes(range(256)) * 20)
    shutil.copy(folder / "garbage", folder / "garbage.safetensors")
    shutil.copy(folder / "garbage", folder / "garbage.pt")
    (folder / "schema.json").write_text('{"rows": [{"label": 1, "psnr": "x"}], "settings": {"prompts": {"a": [null]}}}')
    (folder / "list.json").write_text("[1, 2, 3]")
    for name, steps in (("schedule", 3), ("other-steps", 50)):
        found = {"model": "flux-debug", "num_steps": steps, "full_steps": [0, 2]}
        (folder / f"{name}.json").write_text(json.dumps(found))
    calibration = {
        "model": "flux-debug", "num_steps": 4, "full_steps": [0, 2], "engine": "folded", "basis": "taylor", "max_order": 1,
        "warmup_steps": 1, "corrections": [[], [0.1]],
    }  # fmt: skip
    (folder / "loopseer.json").write_text(json.dumps(calibration))
    (folder / "nan.json").write_text('{"rows": [{"label": "a", "method": "fora", "flops_ratio": NaN, "psnr": null}]}')
    (folder / "nested.json").write_text("[" * 100_000)
    (folder / "index.safetensors.index.json").write_text('{"weight_map": {"a": "../index.safetensors.index.json"}}')
    Image.new("RGB", (8, 8), "teal").save(folder / "good.png")
    Image.new("RGBA", (3, 999)).save(folder / "tall.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    whole = checkpoint.read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copy(checkpoint, folder / "other.safetensors")
    np.savez(folder / "other.npz", a=np.zeros(3))
    (folder / "cut.npz").write_bytes((folder / "other.npz").read_bytes()[:100])
    (folder / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(30))
    (folder / "null").symlink_to(os.devnull)
    (folder / "full").symlink_to("/dev/full")
    (folder / "loop").symlink_to("loop")
    (folder / "prompts.txt").write_text("fox\n\nred apple, noto\n", encoding="utf-8")
    (folder / "clips.txt").write_text("red ring still on navy\ncyan heart moving up on brown\n")
    (folder / "windows.txt").write_bytes("fuchs\r\näpfel\r\n".encode("utf-16"))
    (folder / "latin1.txt").write_bytes("äpfel\n".encode("latin-1"))
    (folder / "zero.txt").write_bytes(b"a\0b\n")
    (folder / "blank.txt").write_text("\n\n \n")
    (folder / "twice.txt").write_text("fox\nfox\nFOX\n")
    (folder / "VBench_full_info.json").write_text('[{"prompt_en": "a fox", "dimension": ["color"]}, {"prompt_en": 3}]')
    (folder / "README.md").write_text("# x\n<!-- table:dit-flops -->\n<!-- /table -->\n")
    samples = folder / "samples"
    for name, value in (("uncached", 10), ("fora-N3-W1", 90)):
        (samples / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (value,) * 3).save(samples / name / "000000.png")
    quality = {"mean_db": 20.0, "min_db": 20.0, "max_db": 20.0}
    rows = [
        {
            "label": name,
            "method": name[:4],
            "flops_ratio": 2.0,
            "psnr": quality,
            "steps": [{"step": 0, "forecast_error": 0.1}],
        }
        for name in ("uncached", "fora-N3-W1")
    ]
    settings = {"prompts": ["fox"], "height": 32, "width": 32}
    (samples / "record.json").write_text(json.dumps({"settings": settings, "rows": rows}))
    good = METHOD.format(name="mine", body=BODIES["mine"])
    for name, text in PLUGINS.items():
        (folder / f"{name}.py").write_bytes(text.replace("{method}", good).encode(errors="surrogateescape"))
    for name, body in BODIES.items():
        text = PLUGINS["good"].replace("{method}", METHOD.format(name="mine", body=body))
        (folder / f"weights-{name}.py").write_text(text)
    (folder / "named.py").write_text(
        PLUGINS["good"].replace("{method}", METHOD.format(name="../mine", body=BODIES["mine"]))
    )


@pytest.fixture(scope="session")
def materials(tmp_path_factory, emoji_folder) -> dict[str, Path]:
    """What the base lines name, and `in`, the folder of broken files."""
    folder = tmp_path_factory.mktemp("materials")
    models = {
        "dit": dit.DiT(dit.dit_config("debug")),
        "flux": flux.Flux(flux.flux_config("flux-debug")),
        "hidream": hidream.HiDream(hidream.hidream_config("hidream-debug")),
        "hunyuan": hunyuan_video.HunyuanVideo(hunyuan_video.hunyuan_video_config("hunyuan-debug")),
        "wan": wan.Wan(wan.wan_config("wan-debug")),
    }
    found = {name: random_weights(model, folder / f"{name}.safetensors") for name, model in models.items()}
    found |= {
        "clothes": write_clothes(folder / "clothes"),
        "emoji": enlarged(emoji_folder, folder / "emoji"),
        "results": folder / "results",
    }
    shutil.copytree(ROOT / "results", found["results"])
    found["features"] = folder / "features.safetensors"
    found["in"] = folder / "in"
    write_inputs(found["in"], found["flux"])
    return found


# ---------------------------------------------------------------------------------------------------------------- drawing


class _CaughtError(Exception):
    """A parser on its way out of a command."""


def parser_of(command: ModuleType) -> argparse.ArgumentParser:
    """The parser that a command makes, taken where it is about to parse."""
    with pytest.MonkeyPatch.context() as patch:

        def catch(self: Parser, *_: object, **__: object) -> None:
            raise _CaughtError(self)

        patch.setattr(Parser, "parse_args", catch)
        patch.setattr(Parser, "parse_known_args", catch)
        with pytest.raises(_CaughtError) as caught:
            command.main([])
    return caught.value.args[0]


PATHS = (
    "in/missing", "in/folder", "in/empty", "in/empty.json", "in/garbage", "in/garbage.safetensors", "in/garbage.pt",
    "in/schema.json", "in/list.json", "in/nan.json", "in/nested.json", "in/schedule.json", "in/loopseer.json",
    "in/index.safetensors.index.json",
    "in/good.png", "in/tall.png", "in/cut.png", "in/cut.safetensors", "in/other.safetensors", "in/other.npz",
    "in/cut.npz", "in/cut.mp4", "in/null", "in/full", "in/loop", "in/prompts.txt", "in/clips.txt", "in/windows.txt",
    "in/latin1.txt", "in/zero.txt", "in/blank.txt", "in/twice.txt", "in/VBench_full_info.json", "in/samples",
    "in/samples/record.json", "in/garbage/below", "in/README.md", "/proc/x/y", "x" * 300, "a/" * 2100 + "b", "../x",
    "", ".", "..", "~", "\udcff\udcfe", "new/deep/folder", "🦊", "a b", "--", "x.png", "x.json", "x.safetensors",
    "x.mp4", "x.pdf",
)  # fmt: skip


@dataclass
class Case:
    """Command lines of one command in one folder, with what is done to the folder between them."""

    script: str
    runs: list[list[str]]
    damages: list[int] = field(default_factory=list)  # seeds, one between two runs

    def __str__(self) -> str:
        return "; then ".join(f"{self.script} {shlex.join(run)}"[:3000] for run in self.runs)


class Drawer:
    """Draws cases of one command."""

    def __init__(self, script: str, parser: argparse.ArgumentParser, base: Sequence[str]) -> None:
        self.script, self.base = script, list(base)
        self.actions = [
            action
            for action in parser._actions
            if action.option_strings and not LEFT_OUT & {*action.option_strings} and action.dest != "help"
        ]

    def case(self, seed: str) -> Case:
        draw = random.Random(seed)
        if draw.random() < SLOW.get(self.script, 0):
            return self.refused(draw)
        first = self.line(draw)
        if draw.random() < 0.8:
            return Case(self.script, [first])
        good = first if draw.random() < 0.3 else self.base
        again = [*good, "--resume"] if draw.random() < 0.5 and self.has("--resume") else good
        second = self.line(draw, again) if draw.random() < 0.6 else again
        return Case(self.script, [good, second], [draw.randrange(2**31)])

    def refused(self, draw: random.Random) -> Case:
        numbers = [action for action in self.actions if self.kind(action) == "number"]
        bad = draw.choice([value for value in NUMBERS if value not in ("0", "+3", "1e3", "2147483648")])
        return Case(self.script, [[*self.base, draw.choice(numbers).option_strings[0], bad]])

    def has(self, flag: str) -> bool:
        return any(flag in action.option_strings for action in self.actions)

    def line(self, draw: random.Random, base: Sequence[str] | None = None) -> list[str]:
        line = list(self.base if base is None else base)
        self.malice = draw.choice((0.1, 0.3, 1.0))
        for _ in range(draw.choice((1, 1, 2, 3, 4))):
            what = draw.random()
            if draw.random() > self.malice:
                line += self.flag(draw, draw.choice(self.actions))
            elif what < 0.03 and line:
                del line[draw.randrange(len(line))]
            elif what < 0.05:
                line.insert(draw.randrange(len(line) + 1), draw.choice(TEXTS))
            elif what < 0.06:
                line.append(draw.choice(("--no-such-flag", "-x", "--out=", "--interv", "--")))
            else:
                line += self.flag(draw, draw.choice(self.actions))
        if self.script.endswith("/train.py") and draw.random() < 0.8:  # a run takes seconds
            line.append("--dry-run")
        return line

    def flag(self, draw: random.Random, action: argparse.Action) -> list[str]:
        name = draw.choice(action.option_strings)
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            return [f"{name}=1"] if draw.random() < self.malice / 10 else [name]
        if draw.random() < self.malice / 20:
            return [name]
        several = action.nargs if isinstance(action.nargs, int) else 1
        if action.nargs in ("+", "*"):
            several = draw.choice((1, 1, 2, 3))
        if action.dest == "plugin" and draw.random() < 0.9:
            return [name, self.value(draw, action), "--method", "mine", "--interval", "2"]
        values = [self.value(draw, action) for _ in range(several + (draw.random() < self.malice / 10))]
        return [f"{name}={values[0]}"] if several == 1 and draw.random() < 0.2 else [name, *values]

    def kind(self, action: argparse.Action) -> str:
        if action.choices:
            return "choice"
        if action.dest in TEXTS_BY_FLAG:
            return "form"
        if action.type is Path:
            return "path"
        return "number" if action.type else "text"

    def value(self, draw: random.Random, action: argparse.Action) -> str:
        kind = self.kind(action)
        if action.dest == "model" and ("train" in self.script or "benchmark" in self.script):
            return draw.choice(sorted(AFFORDED & {*action.choices}))
        if kind == "choice":
            return draw.choice(TEXTS) if draw.random() < self.malice / 3 else str(draw.choice(list(action.choices)))
        if kind == "form":
            return draw.choice(TEXTS if draw.random() < self.malice / 5 else TEXTS_BY_FLAG[action.dest])
        if kind == "path":
            if action.dest == "plugin" and draw.random() < 0.8:
                names = [*PLUGINS, *(f"weights-{name}" for name in BODIES), "named"]
                return f"in/{draw.choice(names)}.py"
            return draw.choice(PATHS)
        if kind == "number":
            return draw.choice(NUMBERS if draw.random() < self.malice else ORDINARY_NUMBERS)
        return draw.choice(TEXTS)


def damage(folder: Path, seed: int) -> str:
    """Do something to what a run has left; what, in words."""
    draw = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing"
    path, what = (
        draw.choice(files),
        draw.choice(("cut", "empty", "garbage", "delete", "folder", "json", "all", "nothing")),
    )
    if what == "all":
        shutil.rmtree(folder)
    elif what == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what in ("delete", "folder"):
        path.unlink()
        if what == "folder":
            path.mkdir()
    elif what != "nothing":
        path.write_bytes({"empty": b"", "garbage": bytes(range(256)) * 4, "json": b'{"rows": 3}'}[what])
    return f"{what} {path.relative_to(folder)}"


# --------------------------------------------------------------------------------------------------------------- the test


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Iterator[Callable[..., dict[str, Any]]]:
    """`runner(script, argv, cwd)`: code, out and err of a command line, run in a fork of one process.

    Without the runner's own folder on its path, where folders of tests have the names of packages.
    """
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HOME": str(home), "XDG_CACHE_HOME": str(home),
    }  # fmt: skip
    environment.pop("TAYLORSEER_TRACEBACK", None)
    process = subprocess.Popen(
        [sys.executable, "-P", RUNNER, *BASES],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(script: str, argv: list[str], cwd: Path) -> dict[str, Any]:
        request = {"script": script, "argv": argv, "cwd": str(cwd), "limit_s": LIMIT_S}
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def bases(materials) -> dict[str, list[str]]:
    """The base lines as lists, by command."""
    names = {name: str(path) for name, path in materials.items()}
    return {script: shlex.split(base.format(**names)) for script, base in BASES.items()}


@pytest.fixture(scope="session")
def drawers(load_command, bases) -> list[Drawer]:
    return [
        Drawer(script, parser_of(load_command(script)), base)
        for script, base in bases.items()
        if os.environ.get("HOSTILE_ONLY", "") in script
    ]


def fault(done: dict[str, Any]) -> str | None:
    """What is wrong with how a command ended, None if nothing is."""
    if done["code"] is None:
        return f"did not end within {LIMIT_S:g} s"
    if "Traceback" in done["err"] + done["out"]:
        return "ended in a traceback"
    if done["code"] not in (0, 2):
        return f"ended with exit code {done['code']}"
    errors = [line for line in done["err"].splitlines() if re.search(r"\berror: ", line)]
    if done["code"] == 2 and len(errors) != 1:
        return f"said {len(errors)} errors"
    if done["code"] == 2 and len(errors[0]) > 8000:
        return f"said an error of {len(errors[0])} characters"
    if done["code"] == 0 and errors:
        return "ended well and said an error"
    return None


def test_every_command_is_tried():
    found = {
        str(path.relative_to(ROOT))
        for root in ("TaylorSeer*", "eval", "common")
        for path in ROOT.glob(f"{root}/**/*.py")
        if "run_command(main)" in path.read_text(encoding="utf-8")
    }
    assert found == {*BASES}


@pytest.mark.slow
def test_base_lines_are_good(drawers, runner, materials, tmp_path):
    """So that what is added to them gets somewhere; of trainings, a run of one stands for the others."""
    for drawer in drawers:
        if drawer.script in {*SLOW, *OF_DOWNLOADS}:
            continue
        shown = drawer.script.endswith("/train.py") and "DiT" not in drawer.script
        shutil.copytree(materials["in"], tmp_path / drawer.script / "in", symlinks=True)
        done = runner(drawer.script, [*drawer.base, *(["--dry-run"] if shown else [])], tmp_path / drawer.script)
        assert done["code"] == 0, done


FOUND = [
    ("TaylorSeer-DiT/sample.py", ["--device=--"], "argument --device: -- is no value"),
    ("TaylorSeer-DiT/sample.py", ["--seed=--"], "argument --seed: -- is no value"),
    ("TaylorSeer-DiT/sample.py", ["--device", "🦊", "--dry-run"], "argument --device: device '🦊' is unknown"),
    ("TaylorSeer-DiT/sample.py", ["--classes", "٠"], "class '٠' is not known"),
    ("TaylorSeer-DiT/sample.py", ["--classes", "9" * 5000], "class '9999"),
    (
        "TaylorSeer-DiT/sample.py",
        ["--model", "DiT-S/8", "--guide-all-channels", "--guidance-scale", "1", "--dry-run"],
        "--guide-all-channels has no effect with --guidance-scale 1",
    ),
    (
        "TaylorSeer-FLUX/sample.py",
        ["--plugin", "in/good.py"],
        "--plugin in/good.py has no effect without --method mine",
    ),
    ("TaylorSeer-FLUX/train.py", ["--ema-decay", "nan"], "argument --ema-decay: nan must lie in [0, 1)"),
    ("TaylorSeer-FLUX/train.py", ["--device", "gpu", "--dry-run"], "device 'gpu' is unknown"),
    ("TaylorSeer-HiDream/train.py", ["--lr", "16"], "samples of the averaged weights have NaN or infinity"),
    ("TaylorSeer-HiDream/train.py", ["--output-dir", "\udcff"], "is not UTF-8"),
    ("TaylorSeer-Wan2.1/generate.py", ["--output-dir", "\udcff/out"], "is not UTF-8"),
    ("eval/train_classifier.py", ["--out", "\udcff/c.safetensors"], "is not UTF-8"),
    ("TaylorSeer-HiDream/inference.py", ["--telemetry"], "--telemetry has no effect on a single image"),
    (
        "TaylorSeer-HiDream/sampling.py",
        ["--guidance-scale", "1_0"],
        "argument --guidance-scale/--guidance: '1_0' is not a number",
    ),
    ("TaylorSeer-Wan2.1/generate.py", ["--size", "²*32"], "argument --size: ²*32 is not WIDTH*HEIGHT"),
    ("TaylorSeer-Wan2.1/generate.py", ["--size", "32*" + "9" * 5000], "is not WIDTH*HEIGHT"),
    ("TaylorSeer-Wan2.1/generate.py", ["--save-file", "in/good.png"], "name a file that ends in .mp4"),
    (
        "TaylorSeer-Wan2.1/generate.py",
        ["--guidance-scale", "1", "--negative-prompt", "red ring still on navy"],
        "--negative-prompt has no effect with --guidance-scale 1",
    ),
    (
        "TaylorSeer-Wan2.1/generate.py",
        ["--guidance-scale", "1", "--batched-guidance"],
        "--batched-guidance has no effect with --guidance-scale 1",
    ),
    ("eval/benchmark.py", ["--out", "in/good.png"], "argument --out: 'in/good.png' must end in .json"),
    ("eval/busy_machine.py", ["--neighbours", "9" * 9], "must be at most 256"),
    ("eval/busy_machine.py", ["--repeats", "9" * 9], "must be at most 1000"),
    ("eval/busy_machine.py", ["--out", "in/folder.json"], "output file in/folder.json is a folder"),
    ("eval/flops.py", ["--telemetry"], "--telemetry has no effect here"),
    ("eval/op_counts.py", ["--out", "in/garbage"], "argument --out: 'in/garbage' must end in .json"),
]
"""Command lines that were once taken silently, tried for ever, or ended in a traceback."""


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags", "message"), FOUND, ids=range(len(FOUND)))
def test_what_was_found(script, flags, message, bases, runner, materials, tmp_path):
    shutil.copytree(materials["in"], tmp_path / "case" / "in", symlinks=True)
    done = runner(script, [*bases[script], *flags], tmp_path / "case")
    assert fault(done) is None
    assert done["code"] == 2
    assert message in done["err"]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_command_lines_end_well_or_in_one_line(chunk, drawers, runner, materials, tmp_path):
    faults, log = [], os.environ.get("HOSTILE_LOG")
    for number in range(chunk, CASES, CHUNKS):
        seed = f"{SEED}/{number}"
        case = drawers[number // CHUNKS % len(drawers)].case(seed)
        cwd = tmp_path / "case"
        shutil.copytree(materials["in"], cwd / "in", symlinks=True)
        for turn, argv in enumerate(case.runs):
            done_to = damage(cwd / "out", case.damages[turn - 1]) if turn else ""
            done = runner(case.script, argv, cwd)
            wrong = fault(done)
            if log:
                with open(f"{log}.{chunk}", "a") as file:
                    entry = {
                        "seed": seed,
                        "script": case.script,
                        "argv": argv,
                        "damage": done_to,
                        "fault": wrong,
                        **done,
                    }
                    print(json.dumps(entry), file=file)
            if wrong:
                lines = f"run {turn + 1} {wrong}; {done_to}\n{done['out'][-300:]}\n{done['err'][-1500:]}"
                faults.append(f"seed {seed}: {case}\n{lines}")
                break
        shutil.rmtree(cwd)
    assert not faults, f"{len(faults)} of {len(range(chunk, CASES, CHUNKS))}:\n\n" + "\n\n".join(faults)
