"""sample_video.py on the debug model: what it writes and prints, and every bad input in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from evaluation import jobs
from evaluation.video_metrics import flicker, video_psnr
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from seerkit.command.cli import run_command
from seerkit.data.captions import PROMPTS
from seerkit.io.media import video_to_uint8
from seerkit.weights.checkpoints import export_safetensors

SCRIPT = "TaylorSeer-HunyuanVideo/sample_video.py"
TAYLORSEER = "taylorseer-N3-W1-O1"
FULL_STEPS = {"uncached": [0, 1, 2, 3, 4, 5], TAYLORSEER: [0, 3], "fora-N3-W1": [0, 3]}
LABELS = list(FULL_STEPS)
PUBLISHED = ["--model", "hunyuan-video", "--prompt", "a cat"]
OFFICIAL = (
    "--video-size 480 640 --video-length 65 --infer-steps 50 --seed 42 --embedded-cfg-scale 6.0 --flow-shift 7.0 --flow-reverse"
    " --use-cpu-offload --save-path X --ulysses-degree 1 --ring-degree 1"
)


@pytest.fixture(scope="module")
def command(load_command):
    return load_command(SCRIPT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A debug model with every weight random."""
    model, generator = HunyuanVideo(hunyuan_video_config("hunyuan-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, model.state_dict())
    return path


@pytest.fixture
def flags(checkpoint, tmp_path) -> list[object]:
    model = [
        "--keep-latents",
        "--model",
        "hunyuan-debug",
        "--ckpt",
        checkpoint,
        "--num-steps",
        6,
        "--interval",
        3,
        "--device",
        "cpu",
    ]
    return [*model, "--output-dir", tmp_path / "out"]


@pytest.fixture
def uncounted(monkeypatch) -> None:
    """FLOPs of a published model take seconds to count."""
    monkeypatch.setattr(jobs, "count_caches", lambda *_, **__: {})


def run(command, capsys, *flags: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(flag) for flag in flags])
    return (stop.value.code, *capsys.readouterr())


def settings_shown(command, capsys, *flags: object) -> dict:
    """What --dry-run says the videos depend on."""
    code, out, err = run(command, capsys, *flags, "--dry-run", "--json")
    assert code == 0, err
    return json.loads(out)["settings"]


def refusal(command, capsys, *flags: object) -> str:
    """The one line of a command that is refused."""
    code, _, err = run(command, capsys, *flags)
    assert code == 2
    (line,) = err.splitlines()
    return line


def latents_in(folder: Path) -> dict[str, Tensor]:
    return {path.name: load_file(path)["latents"] for path in sorted(folder.glob("state/*/latents/*.safetensors"))}


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


# ------------------------------------------------------------------------------------------------------------- outputs


def test_help_shows_examples(command, capsys):
    code, out, _ = run(command, capsys, "--help")
    assert code == 0
    assert "python TaylorSeer-HunyuanVideo/sample_video.py --compare" in out
    assert "torchrun --nproc_per_node=8 TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video" in out


@pytest.mark.slow
def test_compare_writes_videos_strips_and_record_and_prints_the_table(command, capsys, flags, tmp_path, need):
    need("imageio_ffmpeg")
    imageio = need("imageio.v3")
    flags = [*flags, "--compare", "--prompt", *PROMPTS[:2]]
    code, out, err = run(command, capsys, *flags, "--dry-run", "--json")
    assert code == 0, err
    planned, folder = json.loads(out), tmp_path / "out"
    assert not folder.exists()
    assert list(planned["batch"]) == LABELS

    code, out, err = run(command, capsys, *flags)
    assert code == 0, err
    table = [line.split() for line in out.splitlines() if line.split() and line.split()[0] in LABELS]
    assert [(line[0], line[1]) for line in table] == [(c, f"{len(FULL_STEPS[c])}/6") for c in LABELS]
    assert "folded engine keeps" in err, "the run announces what it keeps"
    for label in LABELS:
        for index in range(2):
            latents = load_file(folder / "state" / label / "latents" / f"{index:06d}.safetensors")["latents"]
            assert (latents.shape, latents.dtype) == ((3, 8, 24, 24), torch.float32)
            frames = imageio.imread(folder / label / f"{index:06d}.mp4")
            assert frames.shape == (8, 120, 120, 3), "enlarged"
            with Image.open(folder / "gif" / label / f"{index:06d}.gif") as gif:
                assert gif.size == (120, 120)
    assert imageio.immeta(folder / TAYLORSEER / "000000.mp4")["fps"] == 8
    assert sorted(path.name for path in (folder / "strips").iterdir()) == ["000000.png", "000001.png"]
    assert not hidden(folder)

    record = json.loads((folder / "record.json").read_text())
    assert record["settings"] == planned["settings"]
    assert (record["num_samples"], record["processes"]) == (2, 1)
    pixels = {
        label: video_to_uint8(
            torch.stack([load_file(path)["latents"] for path in sorted(folder.glob(f"state/{label}/latents/*"))])
        )
        for label in LABELS
    }
    for row in record["rows"]:
        label, plan = row["label"], planned["batch"][row["label"]]
        assert row["full_steps"] == plan["full_steps"] == FULL_STEPS[label]
        assert row["kept_bytes"] == plan["kept_bytes"][row["engine"]]
        assert row["flops_ratio"] == plan["flops_ratio"]
        assert row["flicker"]["mean"] == pytest.approx(flicker(pixels[label]).mean())
        if label == "uncached":
            assert (row["psnr"], row["kept_bytes"]) == (None, 0)
        else:
            expected = video_psnr(pixels[label], pixels["uncached"])["mean_db"].mean()
            assert row["psnr"]["mean_db"] == pytest.approx(expected)
            assert row["kept_bytes"] > 0
            assert row["flops_ratio"] > 1


@pytest.mark.slow
def test_a_video_depends_on_prompt_seed_and_number_alone(command, capsys, flags, tmp_path):
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]

    def sampled(name: str, *more: object) -> dict[str, Tensor]:
        out = tmp_path / name
        code, _, err = run(command, capsys, *flags[:-1], out, "--no-gif", "--prompt", *prompts, *more)
        assert code == 0, err
        return latents_in(out)

    whole = sampled("whole", "--batch-size", 3)
    assert len(whole) == 3
    assert not torch.equal(whole["000000.safetensors"], whole["000001.safetensors"]), "one prompt, two noises"
    for batch_size in (1, 2):
        other = sampled(f"batches of {batch_size}", "--batch-size", batch_size)
        assert all(torch.equal(other[key], latents) for key, latents in whole.items()), batch_size
    seeded = sampled("seed", "--batch-size", 3, "--seed", 1)
    assert all((seeded[key] - latents).abs().max() > 0.1 for key, latents in whole.items())


def test_names_for_vbench(command, capsys, flags, tmp_path):
    flags = [*flags, "--prompt", PROMPTS[0], "--samples-per-prompt", 2]
    code, _, err = run(command, capsys, *flags, "--vbench")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "out" / TAYLORSEER).iterdir() if path.is_file())
    assert names == [f"{PROMPTS[0]}-{number}.mp4" for number in (0, 1)], "and nothing that an evaluator would trip over"
    first, second = latents_in(tmp_path / "out").values()
    assert (first - second).abs().max() > 0.1

    different = refusal(command, capsys, *flags, "--seed", 7, "--resume")
    assert "seed is 0 there and 7 here; choose another --output-dir" in different


def test_options_of_the_weights(command, capsys, flags, tmp_path):
    """Modulation weights on the host change nothing, weights in 8 bits a little."""
    made = {}
    for name, more in {"plain": [], "offload": ["--offload"], "fp8": ["--fp8"]}.items():
        code, _, err = run(command, capsys, *flags[:-1], tmp_path / name, "--prompt", PROMPTS[0], "--no-gif", *more)
        assert code == 0, err
        (made[name],) = latents_in(tmp_path / name).values()
    assert torch.equal(made["offload"], made["plain"])
    assert 0 < (made["fp8"] - made["plain"]).abs().max() < 0.1


def test_prompts_come_from_files(command, capsys, flags, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join([PROMPTS[0], "", PROMPTS[1]]))
    (tmp_path / "p.json").write_text(json.dumps([{"prompt_en": prompt, "dimension": []} for prompt in PROMPTS[:2]]))
    for name in ("p.txt", "p.json"):
        shown = settings_shown(command, capsys, *flags, "--prompt-file", tmp_path / name, "--samples-per-prompt", 2)
        assert shown["prompts"] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert settings_shown(command, capsys, *flags)["prompts"] == list(PROMPTS)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.usefixtures("uncounted")
def test_the_official_command_line_is_accepted(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = ["--model", "hunyuan-video", "--prompt", "a cat walks on the grass"]
    shown = settings_shown(command, capsys, *model, *OFFICIAL.split(), "--dit-weight", "Y")
    assert (shown["width"], shown["height"], shown["frames"], shown["num_steps"]) == (640, 480, 65, 50)
    assert (shown["seed"], shown["guidance"], shown["shift"], shown["reverse"]) == (42, 6.0, 7.0, True)
    assert (shown["ckpt"], shown["precision"]) == ("Y", "bf16")
    defaults = settings_shown(command, capsys, *model)
    assert {**shown, "seed": 0, "ckpt": None} == defaults, "the official settings are the defaults"
    for size in ("720 1280", "1280 720", "1104 832", "832 1104", "960 960", "544 960", "960 544", "624 832", "720 720"):
        asked = settings_shown(command, capsys, *model, "--video-size", *size.split(), "--video-length", 129)
        assert f"{asked['height']} {asked['width']} {asked['frames']}" == f"{size} 129"
    assert settings_shown(command, capsys, *model, "--no-flow-reverse")["reverse"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_dry_run_shows_steps_flops_and_bytes_at_full_size(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        command, capsys, "--model", "hunyuan-video", "--prompt", "a cat", "--interval", 5, "--dry-run", "--json"
    )
    assert code == 0, err
    shown = json.loads(out)
    batch = shown["batch"]["taylorseer-N5-W1-O1"]
    assert batch["full_steps"] == list(range(0, 50, 5))
    assert batch["flops_T_uncached"] == pytest.approx(50 * batch["flops_T_full_step"])
    assert 4.9 < batch["flops_ratio"] < 5
    tokens = 17 * 30 * 40
    assert batch["kept_bytes"]["layerwise"] >= 60 * tokens * 3072 * 2, "sixty blocks, bf16"
    assert shown["output_dir"].startswith("outputs/hunyuan/hunyuan-video-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([*PUBLISHED, "--num-frames", 64], "number of frames 64 must be 1, 5, 9, … for hunyuan-video; 65 is near"),
        (["--num-frames", 17], "number of frames 17 must be 2, 4, 6, … for hunyuan-debug; 18 is near"),
        (["--width", 30], "width 30 must be a positive multiple of 4 for hunyuan-debug; 32 is near"),
        ([*PUBLISHED, "--video-size", 500, 640], "height 500 must be a positive multiple of 16 for hunyuan-video; 496 is near"),
        (["--video-size", 32], "argument --video-size: expected 2 arguments"),
        (["--video-size", 32, 32, "--width", 32], "--video-size is height and width; leave out --height and --width, or it"),
        (["--model", "hunyuan-large"], "argument --model: invalid choice: 'hunyuan-large'"),
        (["--model", "hunyuan-video"], 'hunyuan-video needs --prompt "…" or --prompt-file FILE'),
        (["--prompt", "red unicorn"], "'unicorn' in 'red unicorn' is not a known word; write"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file exclude each other"),
        (["--prompt-file", "/nowhere/p.txt"], "prompt file /nowhere/p.txt cannot be read"),
        (
            ["--model", "hunyuan-video", "--prompt", "a/b", "--vbench"],
            "cannot be called after the prompt 'a/b': it holds a slash; give its name apart",
        ),
        (["--ulysses-degree", 2], "ulysses degree 2 does not divide the number of processes, 1"),
        (["--dit-fsdp"], "--dit-fsdp shares weights among processes that share videos; give --ulysses-degree or"),
        (["--dit-fsdp", "--ulysses-degree", 1], "--dit-fsdp shares weights among processes, and this is one; use torchrun"),
        (["--dit-fsdp", "--ring-degree", 1, "--fp8"], "--dit-fsdp excludes --fp8 and --offload"),
        (["--compile", "--engine", "layerwise"], "--compile works with engines whose steps are all alike"),
        (["--warmup-steps", 7], "warmup_steps = 7"),
        (["--device", "tpu"], "device 'tpu' is"),
        (["--ckpt", "/nowhere/x.safetensors"], "/nowhere/x.safetensors (does not exist)"),
        (["--seed", -1], "argument --seed: -1 must be at least 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_line(command, capsys, flags, more, message):
    assert message in refusal(command, capsys, *flags, *more)


def test_processes_that_cannot_share_a_video(command, flags, monkeypatch):
    """What torchrun would start; the degrees are looked at before anything is loaded."""
    monkeypatch.setenv("WORLD_SIZE", "4")

    def find(*more: str) -> None:
        command.main([*map(str, flags), *more, "--dry-run"])

    find("--ulysses-degree", "2", "--ring-degree", "2", "--dit-fsdp")
    with pytest.raises(
        ValueError, match="ulysses degree 4 does not divide 2 attention heads; give ulysses 2 and ring 2"
    ):
        find("--ulysses-degree", "4")
    with pytest.raises(ValueError, match="ulysses 2 x ring 1 must make up the number of processes, 4"):
        find("--ulysses-degree", "2", "--ring-degree", "1")
    with pytest.raises(ValueError, match="--compile works with one process per video"):
        find("--ring-degree", "4", "--compile")


def test_output_that_cannot_be_written(command, capsys, flags, tmp_path):
    (tmp_path / "file").touch()
    line = refusal(command, capsys, *flags[:-1], tmp_path / "file", "--prompt", PROMPTS[0])
    assert f"output directory {tmp_path / 'file'} cannot be written" in line
    assert "choose another one" in line


def test_a_damaged_checkpoint_is_refused(command, capsys, flags, checkpoint, tmp_path):
    state = load_file(checkpoint)
    state["final_layer.linear.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    line = refusal(command, capsys, *flags, "--ckpt", tmp_path / "nan.pt", "--prompt", PROMPTS[0])
    assert "NaN or infinity in 1 tensors (final_layer.linear.bias)" in line


@pytest.mark.usefixtures("uncounted")
def test_missing_weights_are_all_named_at_once(command, capsys, monkeypatch, tmp_path):
    for name in ("HUNYUAN_VIDEO", "HUNYUAN_VAE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = ["--llm", tmp_path / "llm", "--clip", tmp_path / "clip", "--output-dir", tmp_path / "out"]
    code, _, err = run(command, capsys, *PUBLISHED, *nowhere)
    assert code == 2
    for part in (
        "hunyuan-video needs 4 parts that are not here:", "mp_rank_00_model_states.pt",
        "named by HUNYUAN_VIDEO", "named by HUNYUAN_VAE",
        str(tmp_path / "llm"), str(tmp_path / "clip"), "hf download tencent/HunyuanVideo ",
    ):  # fmt: skip
        assert part in err
    assert err.count("hf download") == 2, "a command for each repository"
