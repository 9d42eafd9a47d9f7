"""What the video commands share, on a pipeline that only pretends. Under torchrun, this file runs a command (see `main`)."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cache_dic import Cache, make_cache
from evaluation import jobs, videos
from evaluation.jobs import repeated
from evaluation.video_metrics import flicker, video_psnr
from evaluation.videos import VideoFolder, VideoJob, add_video_flags, figures, judge, video_names
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from seerkit.cli import Parser
from seerkit.distributed import stop_world
from seerkit.files import written_whole
from seerkit.media import video_to_uint8
from seerkit.moving_objects import PROMPTS as CLIPS
from seerkit.prompts import Batch
from seerkit.seeds import SampleGenerators
from seerkit.weights import export_safetensors
from wan import Wan, wan_config

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a cat", "a dog", "a fox"]
CACHES = {
    "uncached": make_cache("uncached"),
    "taylorseer-N2-W1-O1": make_cache("taylorseer", interval=2, warmup_steps=1, max_order=1),
    "fora-N2": make_cache("fora", interval=2),
}
TAYLORSEER, FORA = list(CACHES)[1:]


class FakeRun:
    def record(self) -> dict[str, Any]:
        return {"num_steps": 4, "full_steps": [0, 2], "kept_bytes": 1024}


class FakePipeline:
    """Videos of noise by their number, a little off with a cache; notes what it is asked for."""

    fps, size, spoilt = 8, (3, 4, 8, 8), False

    def __init__(self) -> None:
        self.encoded, self.sampled, self.decoded = [], [], 0

    def encode(self, batches: list[Batch]) -> None:
        self.encoded += [prompt for batch in batches for prompt in batch.prompts]

    def load(self, world) -> None:
        self.loaded = True

    def sample(self, cache: Cache, batch: Batch, callback) -> tuple[Tensor, FakeRun]:
        (label,) = (name for name, known in CACHES.items() if known is cache)
        self.sampled.append((label, tuple(batch.indices)))
        latents = SampleGenerators(0, batch.indices).randn(*self.size).clamp(-1, 1)
        error = {"uncached": 0.0, TAYLORSEER: 0.05, FORA: 0.2}[label]
        return latents + (torch.nan if self.spoilt else error), FakeRun()

    def unload(self) -> None:
        del self.loaded

    def decode(self, latents: Tensor) -> Tensor:
        assert not hasattr(self, "loaded"), "one component at a time"
        self.decoded += 1
        return latents


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """`carry_out(*flags, labels=, pipeline=)`: the pipeline after a job on `PROMPTS`, one video a batch, and its record."""
    counts = {"flops_T": 1.0, "flops_T_uncached": 2.0, "flops_ratio": 2.0, "full_steps": [0, 2]}
    kept = {"folded": 1024, "layerwise": 0}
    monkeypatch.setattr(
        jobs, "count_caches", lambda _, caches, *__, **___: {c: {**counts, "kept_bytes": kept} for c in caches}
    )
    monkeypatch.setattr(videos, "save_mp4", lambda path, frames, fps: path.write_bytes(frames.tobytes()))

    def run(*flags: str, labels=tuple(CACHES), pipeline=None, **settings: Any) -> tuple[FakePipeline, dict[str, Any]]:
        parser, pipeline = Parser("Make videos.", ""), pipeline or FakePipeline()
        add_video_flags(parser)
        args = parser.parse_args(flags)
        vars(args).update(device="cpu", precision="fp32", batch_size=1, accumulator_dtype=None)
        shown = {"model": "fake", "width": 8, "height": 8, "frames": 4, "num_steps": 4, "batch_size": 1, **settings}
        job = VideoJob(
            command="fake.py", args=args, prompts=PROMPTS, settings=shown, sizes={},
            caches={label: CACHES[label] for label in labels}, out=tmp_path / "out", sequence_parallel=False,
            find=lambda world: None, make_pipeline=lambda world: pipeline,
        )  # fmt: skip
        return pipeline, videos.run(job)

    return run


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in record["rows"]}


def test_a_job_leaves_videos_latents_figures_strips_and_a_record(carry_out, out, capsys):
    pipeline, record = carry_out()
    assert len(set(pipeline.sampled)) == len(PROMPTS) * len(CACHES)
    assert pipeline.decoded == len(PROMPTS) * len(CACHES)
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    numbers = [f"{index:06d}" for index in range(len(PROMPTS))]
    assert made == {
        "record.json",
        *(f"strips/{number}.png" for number in numbers),
        *(f"{label}/settings.json" for label in CACHES),
        *(
            f"{label}/{name}"
            for label in CACHES
            for n in numbers
            for name in (f"{n}.mp4", f"{n}.gif", f"latents/{n}.safetensors", f"figures/{n}.json")
        ),
    }
    assert json.loads((out / "record.json").read_text()) == record
    assert (record["num_samples"], record["processes"]) == (3, 1)
    by_label = rows(record)
    assert by_label["uncached"]["psnr"] is None
    assert by_label["uncached"]["flicker"]["error"] is None
    assert by_label["uncached"]["flicker"]["mean"] > 0
    assert by_label[TAYLORSEER]["psnr"]["mean_db"] > by_label[FORA]["psnr"]["mean_db"] > 0
    assert by_label[TAYLORSEER]["latency"]["repeats"] == 3
    own = json.loads((out / FORA / "figures" / "000001.json").read_text())
    assert (own["prompt"], own["index"], own["cache"]) == ("a dog", 1, FORA)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.split() and line.split()[0] in CACHES] == list(
        CACHES
    )
    assert f"record: {out / 'record.json'}" in printed


def test_resuming_makes_what_is_missing_or_damaged_and_nothing_else(carry_out, out):
    carry_out()
    (out / FORA / "latents" / "000001.safetensors").write_bytes(b"half a tensor")
    (out / "uncached" / "latents" / "000002.safetensors").unlink()
    (out / TAYLORSEER / "000000.mp4").unlink()
    (out / FORA / "figures" / "000000.json").write_text("{")
    for leftover in ("", "strips", FORA, f"{FORA}/latents", f"{FORA}/figures"):
        (out / leftover / ".x.abc.partial.png").touch()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    pipeline, record = carry_out("--resume")
    assert set(pipeline.sampled[1:]) == {(FORA, (1,)), ("uncached", (2,))}, "after the one that is dropped"
    assert pipeline.encoded == ["a dog", "a fox"]
    assert pipeline.decoded == len(CACHES), "all of video 0, whose figures need each other"
    changed = {path.name for path, time in times.items() if not path.exists() or path.stat().st_mtime_ns != time}
    assert changed == {"000001.safetensors"}
    assert not list(out.rglob(".*.partial.*"))
    assert rows(record)[TAYLORSEER]["latency"] is None, "nothing of it was sampled"

    pipeline, again = carry_out("--resume")
    assert (pipeline.encoded, pipeline.sampled, pipeline.decoded) == ([], [], 0)
    assert rows(again)[FORA]["psnr"] == rows(record)[FORA]["psnr"]
    pipeline, _ = carry_out()
    assert pipeline.decoded == len(PROMPTS) * len(CACHES), "without --resume all is made again"


def test_runs_of_single_caches_are_compared_by_a_later_one(carry_out, out):
    """Their figures have no PSNR; the latents that are there suffice to add it."""
    carry_out(labels=["uncached"])
    assert rows(carry_out(labels=[TAYLORSEER])[1])[TAYLORSEER]["psnr"] is None
    strip = (out / "strips" / "000000.png").read_bytes()
    pipeline, record = carry_out("--resume", labels=["uncached", TAYLORSEER])
    assert pipeline.sampled == []
    assert rows(record)[TAYLORSEER]["psnr"]["mean_db"] > 0
    assert (out / "strips" / "000000.png").read_bytes() != strip, "both are in it now"


def test_other_settings_are_refused(carry_out, out):
    carry_out(labels=[FORA])
    before = (out / FORA / "000000.mp4").read_bytes()
    for flags in ([], ["--resume"]):
        with pytest.raises(ValueError, match="num_steps is 4 there and 5 here; choose another output folder"):
            carry_out(*flags, labels=[FORA], num_steps=5)
    assert (out / FORA / "000000.mp4").read_bytes() == before


def test_latents_that_are_not_finite_are_refused(carry_out, out):
    pipeline = FakePipeline()
    pipeline.spoilt = True
    with pytest.raises(
        ValueError, match=r"latents of video 0 have NaN or infinity \(fora-N2\); try another --precision"
    ):
        carry_out(labels=[FORA], pipeline=pipeline)
    assert not list(out.rglob("*.safetensors"))


def test_videos_of_two_frames_have_no_flicker(carry_out, capsys):
    pipeline = FakePipeline()
    pipeline.size = (3, 1, 8, 8)
    row = rows(carry_out(labels=["uncached", FORA], pipeline=pipeline)[1])[FORA]
    assert row["flicker"] == {"mean": None, "error": None}
    assert row["psnr"]["mean_db"] > 0
    assert capsys.readouterr().out.splitlines()[-5].split()[-2:] == ["–", "–"]


def test_gifs_are_for_small_videos_and_can_be_left_out(carry_out, out):
    carry_out("--no-gif", labels=[FORA])
    assert not list(out.rglob("*.gif"))
    pipeline = FakePipeline()
    pipeline.size = (3, 3, 136, 136)
    carry_out(labels=[FORA], pipeline=pipeline)
    assert len(list(out.rglob("*.mp4"))) == 3
    assert not list(out.rglob("*.gif"))
    carry_out(labels=[FORA])
    with Image.open(out / FORA / "000000.gif") as gif:
        assert gif.size == (128, 128), "8 pixels a side, enlarged"


def test_the_record_alone_is_printed_on_demand(carry_out, capsys):
    _, record = carry_out("--json", labels=[FORA])
    assert json.loads(capsys.readouterr().out) == record


def test_dry_run_writes_nothing(carry_out, out, capsys):
    pipeline, record = carry_out("--dry-run")
    shown = json.loads(capsys.readouterr().out)
    assert shown["output_dir"] == str(out)
    assert list(shown["batch"]) == list(CACHES)
    assert record is None
    assert pipeline.sampled == []
    assert not out.exists()


class TestNames:
    def names(self, prompts: list[str], samples: int = 1, *, vbench: bool = True) -> list[str]:
        parser = Parser("Make videos.", "")
        add_video_flags(parser)
        args = parser.parse_args(["--samples-per-prompt", str(samples), *(["--vbench"] if vbench else [])])
        return video_names(args, repeated(prompts, samples))

    def test_numbers(self):
        assert self.names(["a/b", "a/b"], 2, vbench=False) == ["000000", "000001", "000002", "000003"]

    def test_vbench(self):
        assert self.names(["a cat", "a dog"], 2) == ["a cat-0", "a cat-1", "a dog-0", "a dog-1"]

    def test_the_longest_can_be_written(self, tmp_path):
        folder = VideoFolder(tmp_path, "label", [f"{'é' * (videos.LONGEST_NAME // 2)}x-999"])
        with written_whole(folder.video(0)) as temporary:
            temporary.touch()
        assert folder.video(0).is_file()

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            (["a cat", "either/or"], "'either/or'… cannot be one: it has a slash or more than 229 bytes"),
            (["é" * 115], "more than 229 bytes"),
            (["a cat", "a cat"], "one stands in the list twice; name each once"),
        ],
    )
    def test_refused(self, prompts, message):
        with pytest.raises(ValueError, match="--vbench names files by their prompts") as caught:
            self.names(prompts)
        assert message in str(caught.value)


class TestFigures:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)

    def test_against_the_uncached_video(self):
        video, reference = self.frames
        measured = figures(video, reference, FORA)
        assert measured["psnr"] == {
            name: pytest.approx(value.item()) for name, value in video_psnr(video[None], reference[None]).items()
        }
        own, theirs = flicker(self.frames)
        assert measured["flicker"] == pytest.approx(own)
        assert measured["flicker_error"] == pytest.approx((own - theirs) / theirs)
        assert figures(video, video, FORA)["psnr"] == {"mean_db": None, "min_db": None}, "equal videos: infinite"

    @pytest.mark.parametrize(("reference", "label"), [(None, FORA), (frames[0], "uncached")])
    def test_with_nothing_to_compare(self, reference, label):
        measured = figures(self.frames[0], reference, label)
        assert (measured["psnr"], measured["flicker_error"]) == (None, None)
        assert measured["flicker"] == pytest.approx(flicker(self.frames[:1])[0])

    def test_means_over_the_videos(self, carry_out, out):
        carry_out()
        folders = {label: VideoFolder(out, label, ["000000", "000001", "000002"]) for label in CACHES}
        shown = {
            label: video_to_uint8(torch.stack([folder.read_latents(i) for i in range(3)]))
            for label, folder in folders.items()
        }
        scores = judge(folders, 3)
        expected = video_psnr(shown[FORA], shown["uncached"])["mean_db"].mean()
        assert scores[FORA]["psnr"]["mean_db"] == pytest.approx(expected)
        assert scores[FORA]["flicker"]["mean"] == pytest.approx(flicker(shown[FORA]).mean())
        folders[FORA].video(1).unlink()
        with pytest.raises(ValueError, match=r"000001\.mp4 went missing meanwhile; use --resume"):
            judge(folders, 3)


@dataclass(frozen=True)
class VideoCommand:
    """A command with its debug model: flags of it with a checkpoint, of the folder, and of two ways to share a video."""

    script: str
    model: nn.Module
    flags: tuple[str, ...]
    folder: str
    ulysses: tuple[str, ...]
    ring: tuple[str, ...]


COMMANDS = {
    "wan": lambda: VideoCommand(
        "TaylorSeer-Wan2.1/generate.py", Wan(wan_config("wan-debug")),
        ("--task", "debug", "--sample_steps", "6", "--ckpt_dir"), "--output-dir",
        ("--ulysses_size", "2"), ("--ring_size", "2", "--dit_fsdp"),
    ),
    "hunyuan": lambda: VideoCommand(
        "TaylorSeer-HunyuanVideo/sample_video.py", HunyuanVideo(hunyuan_video_config("hunyuan-debug")),
        ("--model", "hunyuan-debug", "--infer-steps", "6", "--dit-weight"), "--save-path",
        ("--ulysses-degree", "2", "--ring-degree", "1"), ("--ring-degree", "2", "--dit-fsdp"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_and_several_processes_end_with_the_same_latents(name, tmp_path, run_script):
    """A run is killed and resumed by two processes, which then make its first videos together in two ways."""
    command, draw = COMMANDS[name](), torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=draw) * 0.1 for key, value in command.model.state_dict().items()}
    export_safetensors(tmp_path / "debug.safetensors", state)
    (tmp_path / "prompts.txt").write_text("\n".join(CLIPS[:5]))
    prompts = ["--prompt-file", str(tmp_path / "prompts.txt")]
    cache = ["--interval", "3", "--device", "cpu", "--batch-size", "1", "--no-gif"]
    common = [*command.flags, str(tmp_path / "debug.safetensors"), *cache, command.folder]

    def made(folder: str) -> dict[int, Path]:
        return {int(path.stem): path for path in sorted((tmp_path / folder).glob("*/latents/[0-9]*"))}

    def contents(folder: str) -> dict[int, bytes]:
        return {index: path.read_bytes() for index, path in made(folder).items()}

    done = run_script(command.script, *common, tmp_path / "whole", *prompts)
    assert done.returncode == 0, done.stderr
    whole = contents("whole")
    assert list(whole) == [0, 1, 2, 3, 4]

    argv = [sys.executable, str(ROOT / command.script), *common, str(tmp_path / "killed"), *prompts]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet) as process:
        while len(made("killed")) < 2:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "record.json").exists()
    before = made("killed")
    before[1].write_bytes(before[1].read_bytes()[:-20])
    (before[0].parent / ".000004.abc.partial.safetensors").write_bytes(b"half")
    untouched = before[0].stat().st_mtime_ns

    lines = {
        "killed": [*prompts, "--resume"],
        "ulysses": ["--prompt", *CLIPS[:2], *command.ulysses],
        "ring": ["--prompt", *CLIPS[:2], *command.ring],
    }
    command_lines = json.dumps([[*common, str(tmp_path / folder), *more] for folder, more in lines.items()])
    done = run_script(__file__, ROOT / command.script, command_lines, processes=2)
    assert done.returncode == 0, done.stderr
    wrote = [json.loads(line.partition("WROTE ")[2]) for line in done.stdout.splitlines() if "WROTE " in line]
    assert contents("killed") == whole
    assert before[0].stat().st_mtime_ns == untouched
    assert not list((tmp_path / "killed").rglob(".*"))
    assert sorted(wrote[0][0] + wrote[1][0]) == sorted({*whole} - {*before} | {1}), "each by one of them"
    for turn, folder in enumerate(lines):
        assert json.loads((tmp_path / folder / "record.json").read_text())["processes"] == 2
        if folder != "killed":
            assert sorted(share[turn] for share in wrote) == [[], [0, 1]], "one of them writes"
            for index, path in made(folder).items():
                one, two = (load_file(file)["latents"] for file in (made("whole")[index], path))
                assert (one - two).abs().max() < 1e-5 * one.abs().max()


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("command", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(script: str, command_lines: str) -> None:
    """Run a video command with several command lines, one after the other; print which samples this process wrote."""
    command, write, wrote = load_script(script), VideoFolder.write_latents, []

    def noted(folder: VideoFolder, batch: Batch, latents: Tensor) -> None:
        wrote[-1] += batch.indices
        write(folder, batch, latents)

    VideoFolder.write_latents = noted
    for argv in json.loads(command_lines):
        wrote.append([])
        command.main(argv)
    print(f"WROTE {json.dumps(wrote)}", flush=True)
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
