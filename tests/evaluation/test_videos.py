"""What the video commands share, on a pipeline that only pretends. Under torchrun, this file runs a command (see `main`)."""

import importlib.util
import json
import os
import shutil
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cache_dic import Cache, UserError, make_cache
from evaluation import jobs, videos
from evaluation.video_flags import add_video_flags
from evaluation.video_metrics import flicker, video_psnr
from evaluation.videos import VideoFolder, VideoJob, figures
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from seerkit.command.cli import Parser
from seerkit.data.captions import PROMPTS as CLIPS
from seerkit.devices.distributed import stop_world
from seerkit.io.media import video_to_uint8
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.prompts import Batch
from seerkit.weights.checkpoints import export_safetensors
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

    fps, size, spoilt = 8, (3, 4, 8, 8), None
    removed: Path | None = None  # the folder that is removed before the second sample's latents
    undecodable = False

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
        for row, index in enumerate(batch.indices):
            if (label, index) == self.spoilt:
                latents[row, 0, 0, 0, 0] = torch.nan
        if self.removed and self.removed.exists() and 1 in batch.indices:
            shutil.rmtree(self.removed)
        return latents + error, FakeRun()

    def unload(self) -> None:
        del self.loaded

    def decode(self, latents: Tensor) -> Tensor:
        assert not hasattr(self, "loaded"), "one component at a time"
        self.decoded += 1
        return latents * torch.nan if self.undecodable else latents


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """`carry_out(*flags, labels=, pipeline=)`: the pipeline after a job on `PROMPTS`, one video per batch, and its record."""
    counts = {"flops_T": 1.0, "flops_T_uncached": 2.0, "flops_ratio": 2.0, "full_steps": [0, 2]}
    kept = {"folded": 1024, "layerwise": 0}
    monkeypatch.setattr(
        jobs, "count_caches", lambda _, caches, *__, **___: {c: {**counts, "kept_bytes": kept} for c in caches}
    )

    def run(*flags: str, labels=tuple(CACHES), pipeline=None, **settings: Any) -> tuple[FakePipeline, dict[str, Any]]:
        parser, pipeline = Parser("Make videos.", ""), pipeline or FakePipeline()
        add_video_flags(parser, {}, family="fake", quality=5)
        args = parser.parse_args(flags)
        vars(args).update(device="cpu", precision="fp32", batch_size=1, accumulator_dtype=None)
        shown = {"model": "fake", "width": 8, "height": 8, "frames": 4, "num_steps": 4, "batch_size": 1, **settings}
        job = VideoJob(
            command="fake.py", args=args, prompts=PROMPTS, settings=shown, sizes={},
            caches={label: CACHES[label] for label in labels}, out=tmp_path / "out",
            names=[f"{i:06d}" for i in range(3)], latent_shape=pipeline.size, together=False,
            find=lambda world: {}, make_pipeline=lambda world: pipeline,
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
        "index.html",
        *(f"strips/{number}.png" for number in numbers),
        *(f"state/{label}/claim.json" for label in CACHES),
        *(
            name
            for label in CACHES
            for n in numbers
            for name in (
                f"{label}/{n}.mp4",
                f"gif/{label}/{n}.gif",
                f"state/{label}/figures/{n}.json",
                f"state/{label}/rows/{n}.png",
            )
        ),
    }, "folders of videos hold nothing else, and latents go when they are decoded"
    assert json.loads((out / "record.json").read_text()) == record
    assert (record["num_samples"], record["processes"]) == (3, 1)
    by_label = rows(record)
    assert by_label["uncached"]["psnr"] is None
    assert by_label["uncached"]["flicker"]["mean"] > 0
    assert by_label[TAYLORSEER]["psnr"]["mean_db"] > by_label[FORA]["psnr"]["mean_db"] > 0
    assert by_label[TAYLORSEER]["latency"]["repeats"] == 3
    own = json.loads((out / "state" / FORA / "figures" / "000001.json").read_text())
    assert (own["prompt"], own["index"], own["cache"]) == ("a dog", 1, FORA)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.split() and line.split()[0] in CACHES] == list(
        CACHES
    )
    assert f"record: {out / 'record.json'}" in printed
    assert not list(out.rglob("latents")), "which are decoded"


def damage(path: Path) -> None:
    """Cut a file in half, as a killed writer or a full disk leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_resuming_makes_what_is_missing_or_damaged_and_nothing_else(carry_out, out):
    _, first = carry_out()
    state = out / "state" / FORA
    damage(out / FORA / "000001.mp4")
    (out / TAYLORSEER / "000000.mp4").unlink()
    (state / "figures" / "000000.json").write_text("{")
    for leftover in ("", "strips", FORA, f"state/{FORA}/figures"):
        (out / leftover / ".x.abc.partial.png").touch()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    pipeline, record = carry_out("--resume")
    assert set(pipeline.sampled[1:]) == {
        ("uncached", (0,)), (TAYLORSEER, (0,)), (FORA, (0,)), ("uncached", (1,)), (FORA, (1,)),
    }, "with the uncached video to compare with"  # fmt: skip
    assert pipeline.encoded == ["a cat", "a dog"]
    same = {path.relative_to(out) for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert same == {Path(label, "000002.mp4") for label in CACHES} | {Path(TAYLORSEER, "000001.mp4")}
    assert not list(out.rglob(".*.partial.*"))
    assert rows(record)[FORA]["psnr"] == rows(first)[FORA]["psnr"]

    pipeline, again = carry_out("--resume")
    assert (pipeline.encoded, pipeline.sampled, pipeline.decoded) == ([], [], 0)
    assert rows(again)[FORA]["psnr"] == rows(record)[FORA]["psnr"]
    assert rows(again)[FORA]["latency"] == rows(record)[FORA]["latency"], "what was measured before stands"
    pipeline, _ = carry_out()
    assert pipeline.decoded == len(PROMPTS) * len(CACHES), "without --resume all is made again"


@pytest.mark.parametrize("part", ["gif/{}/000002.gif", "state/{}/rows/000002.png", "{}/000002.mp4"])
@pytest.mark.parametrize(
    "harm", [damage, Path.unlink, lambda path: path.write_bytes(b"")], ids=["cut", "gone", "empty"]
)
def test_media_that_are_not_whole_are_made_again(carry_out, out, part, harm):
    carry_out(labels=[FORA])
    path = out / part.format(FORA)
    before = path.read_bytes()
    harm(path)
    pipeline, _ = carry_out("--resume", labels=[FORA])
    assert pipeline.sampled == [(FORA, (2,))]
    assert path.read_bytes() == before


def test_a_damaged_strip_is_drawn_again_without_sampling(carry_out, out):
    carry_out()
    strip = out / "strips" / "000001.png"
    before = strip.read_bytes()
    damage(strip)
    assert carry_out("--resume")[0].sampled == []
    assert strip.read_bytes() == before


def test_latents_are_kept_on_request_and_serve_a_later_comparison(carry_out, out, capsys):
    carry_out("--keep-latents", labels=["uncached"])
    assert capsys.readouterr().out.startswith("latents take up to 9.00 KiB in "), "told before"
    assert len(list((out / "state" / "uncached" / "latents").glob("*.safetensors"))) == 3
    assert rows(carry_out("--keep-latents", labels=[TAYLORSEER])[1])[TAYLORSEER]["psnr"] is None
    strip = (out / "strips" / "000000.png").read_bytes()
    pipeline, record = carry_out("--resume", "--keep-latents", labels=["uncached", TAYLORSEER])
    assert pipeline.sampled == []
    assert rows(record)[TAYLORSEER]["psnr"]["mean_db"] > 0
    assert (out / "strips" / "000000.png").read_bytes() != strip, "both are in it now"


@pytest.mark.parametrize("spoil", ["nan", "shape", "cut"])
def test_kept_latents_that_cannot_be_used_are_sampled_again(carry_out, out, spoil):
    carry_out("--keep-latents", labels=[FORA])
    path = out / "state" / FORA / "latents" / "000001.safetensors"
    whole = load_file(path)["latents"].clone()  # of the file that will be cut
    if spoil == "cut":
        damage(path)
    else:
        save_file({"latents": whole[:1].clone() if spoil == "shape" else whole * torch.nan}, path)
    (out / FORA / "000001.mp4").unlink()
    assert carry_out("--resume", "--keep-latents", labels=[FORA])[0].sampled == [(FORA, (1,))]
    assert torch.equal(load_file(path)["latents"], whole)


def test_other_settings_are_refused(carry_out, out):
    carry_out(labels=[FORA])
    before = (out / FORA / "000000.mp4").read_bytes()
    for flags in ([], ["--resume"]):
        with pytest.raises(UserError, match=r"num_steps is 4 there and 5 here.*; choose another --output-dir"):
            carry_out(*flags, labels=[FORA], num_steps=5)
    with pytest.raises(UserError, match="frames is 4 there and 5 here"):
        carry_out(labels=["uncached"], frames=5)
    assert (out / FORA / "000000.mp4").read_bytes() == before


def test_a_video_that_is_not_finite_is_named_and_the_others_are_kept(carry_out, out):
    pipeline = FakePipeline()
    pipeline.spoilt = (FORA, 1)
    with pytest.raises(UserError, match="sample 1 of fora-N2 came out with NaN or infinity"):
        carry_out(pipeline=pipeline)
    made = {str(path.relative_to(out)) for path in out.rglob("*.mp4")}
    assert made == {f"{FORA}/000000.mp4", *(f"{c}/{i:06d}.mp4" for c in ("uncached", TAYLORSEER) for i in range(3))}
    record = json.loads((out / "record.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["uncached", TAYLORSEER]


def test_what_is_advised_where_no_video_was_decoded_works_in_the_same_folder(carry_out, out):
    """Latents that make no video are kept on request alone; they bind their folder then, and the advice says so."""
    pipeline = FakePipeline()
    pipeline.undecodable = True
    with pytest.raises(UserError, match=r"take another --output-dir with a lower guidance weight$"):
        carry_out("--keep-latents", labels=["uncached"], pipeline=pipeline)
    shutil.rmtree(out)
    pipeline = FakePipeline()
    pipeline.undecodable = True
    with pytest.raises(UserError, match=r"of that cache made; take a lower guidance weight$"):
        carry_out(labels=["uncached"], pipeline=pipeline, guidance=9.0)
    assert carry_out(labels=["uncached"], guidance=2.0)[1]["num_samples"] == 3


def test_a_folder_removed_meanwhile_is_named_and_resumed(carry_out, out):
    pipeline = FakePipeline()
    pipeline.removed = out
    with pytest.raises(UserError, match=r"000000\.safetensors went missing or was damaged meanwhile; use --resume"):
        carry_out(labels=["uncached"], pipeline=pipeline)
    pipeline, record = carry_out("--resume", labels=["uncached"])
    assert pipeline.sampled == [("uncached", (0,))]
    assert record["num_samples"] == 3


def test_videos_of_two_frames_have_no_flicker(carry_out, capsys):
    pipeline = FakePipeline()
    pipeline.size = (3, 1, 8, 8)
    row = rows(carry_out(labels=["uncached", FORA], pipeline=pipeline)[1])[FORA]
    assert "flicker" not in row
    assert row["psnr"]["mean_db"] > 0
    assert "flicker" not in capsys.readouterr().out


def test_gifs_are_for_small_videos_and_can_be_left_out(carry_out, out):
    carry_out("--no-gif", labels=[FORA])
    assert not list(out.rglob("*.gif"))
    pipeline = FakePipeline()
    pipeline.size = (3, 3, 136, 136)
    carry_out(labels=[FORA], pipeline=pipeline)
    assert len(list(out.rglob("*.mp4"))) == 3
    assert not list(out.rglob("*.gif"))
    carry_out(labels=[FORA])
    with Image.open(out / "gif" / FORA / "000000.gif") as gif:
        assert gif.size == (128, 128), "8 pixels a side, enlarged"


def test_the_record_alone_is_printed_on_demand(carry_out, capsys):
    _, record = carry_out("--json", labels=[FORA])
    assert json.loads(capsys.readouterr().out) == record


def test_dry_run_writes_nothing(carry_out, out, capsys):
    pipeline, record = carry_out("--dry-run", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["output_dir"] == str(out)
    assert list(shown["batch"]) == list(CACHES)
    assert record is None
    assert pipeline.sampled == []
    assert not out.exists()


class TestFigures:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)

    def test_against_the_uncached_video(self):
        video, reference = self.frames
        measured = figures(video, reference)
        assert measured["psnr"] == {
            name: pytest.approx(value.item()) for name, value in video_psnr(video[None], reference[None]).items()
        }
        assert measured["flicker"] == pytest.approx(flicker(self.frames)[0])
        assert figures(video, video)["psnr"] == {"mean_db": None, "min_db": None}, "equal videos: infinite"

    def test_with_nothing_to_compare(self):
        measured = figures(self.frames[0], None)
        assert measured["psnr"] is None
        assert measured["flicker"] == pytest.approx(flicker(self.frames[:1])[0])

    def test_means_over_the_videos(self, carry_out, out):
        _, record = carry_out("--keep-latents")
        kept = {label: sorted((out / "state" / label / "latents").iterdir()) for label in ("uncached", FORA)}
        shown = {
            label: video_to_uint8(torch.stack([load_file(path)["latents"] for path in paths]))
            for label, paths in kept.items()
        }
        row = rows(record)[FORA]
        expected = video_psnr(shown[FORA], shown["uncached"])["mean_db"].mean()
        assert row["psnr"]["mean_db"] == pytest.approx(expected)
        assert row["flicker"]["mean"] == pytest.approx(flicker(shown[FORA]).mean())


@dataclass(frozen=True)
class VideoCommand:
    """A command with its debug model: flags of it with a checkpoint, and of sharing a video by heads."""

    script: str
    model: nn.Module
    flags: tuple[str, ...]
    ulysses: tuple[str, ...]


COMMANDS = {
    "wan": lambda: VideoCommand(
        "TaylorSeer-Wan2.1/generate.py", Wan(wan_config("wan-debug")),
        ("--model", "wan-debug", "--num-steps", "6", "--ckpt"), ("--ulysses-degree", "2"),
    ),
    "hunyuan": lambda: VideoCommand(
        "TaylorSeer-HunyuanVideo/sample_video.py", HunyuanVideo(hunyuan_video_config("hunyuan-debug")),
        ("--model", "hunyuan-debug", "--num-steps", "6", "--ckpt"), ("--ulysses-degree", "2", "--ring-degree", "1"),
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
    cache = ["--interval", "3", "--device", "cpu", "--batch-size", "1", "--no-gif", "--keep-latents"]
    common = [*command.flags, str(tmp_path / "debug.safetensors"), *cache, "--output-dir"]

    def made(folder: str) -> dict[int, Path]:
        return {int(path.stem): path for path in sorted((tmp_path / folder).glob("state/*/latents/[0-9]*"))}

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
        "ring": ["--prompt", *CLIPS[:2], "--ring-degree", "2", "--dit-fsdp"],
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

    def noted(folder: VideoFolder, batch: Batch, latents: Tensor) -> list[int]:
        wrote[-1] += batch.indices
        return write(folder, batch, latents)

    VideoFolder.write_latents = noted
    for argv in json.loads(command_lines):
        wrote.append([])
        command.main(argv)
    print(f"WROTE {json.dumps(wrote)}", flush=True)
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
