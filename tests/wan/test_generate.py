"""generate.py on the debug model: what it writes and prints, and every bad input in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from evaluation import jobs
from evaluation.video_metrics import flicker, video_psnr
from seerkit.command.cli import run_command
from seerkit.data.captions import PROMPTS
from seerkit.io.media import video_to_uint8
from seerkit.weights.checkpoints import export_safetensors
from wan import Wan, wan_config
from wan.config import NEGATIVE_PROMPT, NEGATIVE_PROMPT_I2V

SCRIPT = "TaylorSeer-Wan2.1/generate.py"
TAYLORSEER = "taylorseer-N3-W1-O1"
FULL_STEPS = {"uncached": [0, 1, 2, 3, 4, 5], TAYLORSEER: [0, 3], "fora-N3-W1": [0, 3]}
LABELS = list(FULL_STEPS)
OFFICIAL = (
    "--offload_model True --t5_cpu --sample_solver dpm++ --sample_shift 5.0 --sample_guide_scale 5.0 --base_seed 42"
)


@pytest.fixture(scope="module")
def command(load_command):
    return load_command(SCRIPT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A debug model with every weight random."""
    model, generator = Wan(wan_config("wan-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, model.state_dict())
    return path


@pytest.fixture
def flags(checkpoint, tmp_path) -> list[object]:
    model = ["--model", "wan-debug", "--ckpt", checkpoint, "--num-steps", 6, "--interval", 3, "--device", "cpu"]
    model.append("--keep-latents")
    return [*model, "--output-dir", tmp_path / "out"]


@pytest.fixture
def picture(tmp_path) -> Path:
    """A photograph of 640 x 480 pixels, upright."""
    Image.new("RGB", (480, 640), "teal").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


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
    assert "python TaylorSeer-Wan2.1/generate.py --compare" in out
    assert "torchrun --nproc_per_node=8 TaylorSeer-Wan2.1/generate.py --model wan-t2v-14B --ckpt" in out


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
        assert row["branches"] == 2
        assert row["kept_bytes"] == plan["kept_bytes"][row["engine"]], "of both branches"
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
    together = sampled("together", "--batch-size", 2, "--batched-guidance")
    for key, latents in whole.items():
        torch.testing.assert_close(together[key], latents, rtol=0, atol=1e-5)
    seeded = sampled("seed", "--batch-size", 3, "--seed", 1)
    assert all((seeded[key] - latents).abs().max() > 0.1 for key, latents in whole.items())


def test_names_for_vbench_and_one_file_by_name(command, capsys, flags, tmp_path):
    folder, save_file = tmp_path / "out" / TAYLORSEER, tmp_path / "new" / "one.mp4"
    code, _, err = run(command, capsys, *flags, "--prompt", PROMPTS[0], "--vbench", "--save-file", save_file)
    assert code == 0, err
    assert save_file.read_bytes() == (folder / f"{PROMPTS[0]}-0.mp4").read_bytes()
    assert (tmp_path / "out" / "gif" / TAYLORSEER / f"{PROMPTS[0]}-0.gif").is_file()
    assert [path.suffix for path in folder.iterdir()] == [".mp4"], "VBench looks at the first file of a folder"

    different = refusal(command, capsys, *flags, "--prompt", PROMPTS[0], "--seed", 7, "--resume")
    assert "seed is 0 there and 7 here; choose another --output-dir" in different
    several = [*flags, "--prompt", PROMPTS[0], "--samples-per-prompt", 2]
    assert "one.mp4 is one video, and 2 are made; use --output-dir" in refusal(
        command, capsys, *several, "--save-file", "one.mp4"
    )
    in_folder = refusal(command, capsys, *flags, "--prompt", PROMPTS[0], "--save-file", tmp_path / "new")
    assert f"{tmp_path / 'new'} is a folder; name a file in it" in in_folder

    code, _, err = run(command, capsys, *several[:-5], tmp_path / "two", *several[-4:], "--vbench", "--no-gif")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "two" / TAYLORSEER).glob("*.mp4"))
    assert names == [f"{PROMPTS[0]}-0.mp4", f"{PROMPTS[0]}-1.mp4"]
    first, second = latents_in(tmp_path / "two").values()
    assert (first - second).abs().max() > 0.1


def test_prompts_come_from_files(command, capsys, flags, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join([PROMPTS[0], "", PROMPTS[1]]))
    (tmp_path / "p.json").write_text(json.dumps([{"prompt_en": prompt, "dimension": []} for prompt in PROMPTS[:2]]))
    for name in ("p.txt", "p.json"):
        shown = settings_shown(command, capsys, *flags, "--prompt-file", tmp_path / name, "--samples-per-prompt", 2)
        assert shown["prompts"] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert settings_shown(command, capsys, *flags)["prompts"] == list(PROMPTS)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("t2v-1.3B", ["832*480", "480*832"]),
        ("t2v-14B", ["1280*720", "720*1280", "832*480", "480*832"]),
        ("i2v-14B", ["1280*720", "720*1280", "832*480", "480*832"]),
    ],
)
@pytest.mark.usefixtures("uncounted")
def test_official_command_lines_are_accepted(command, capsys, monkeypatch, tmp_path, picture, task, sizes):
    monkeypatch.chdir(tmp_path)
    for size in sizes:
        flags = ["--task", task, "--size", size, "--frame_num", 81, "--ckpt_dir", "X", "--prompt", "two cats boxing"]
        flags += [
            *OFFICIAL.split(),
            "--sample_steps",
            50,
            "--ulysses_size",
            1,
            "--ring_size",
            1,
            "--save_file",
            "x.mp4",
        ]
        shown = settings_shown(command, capsys, *flags, *(["--image", picture] if "i2v" in task else []))
        width, height = (int(side) for side in size.split("*"))
        small = width * height <= 832 * 480
        if "i2v" in task:  # of the picture's shape, within that area
            assert shown["model"] == f"wan-i2v-14B-{'480P' if small else '720P'}"
            assert (shown["width"], shown["height"]) == ((544, 720) if small else (816, 1104))
            assert shown["negative_prompt"] == NEGATIVE_PROMPT_I2V
        else:
            assert (shown["model"], shown["width"], shown["height"]) == (f"wan-{task}", width, height)
            assert shown["negative_prompt"] == NEGATIVE_PROMPT
        assert (shown["frames"], shown["num_steps"], shown["solver"], shown["seed"]) == (81, 50, "dpm++", 42)
        assert (shown["shift"], shown["guidance"], shown["precision"]) == (5.0, 5.0, "bf16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


@pytest.mark.usefixtures("uncounted")
def test_defaults_are_the_official_ones(command, capsys, picture):
    asked = ["--prompt", "a cat"]
    t2v = settings_shown(command, capsys, "--model", "wan-t2v-1.3B", *asked)
    assert (t2v["width"], t2v["height"], t2v["frames"], t2v["num_steps"], t2v["shift"]) == (832, 480, 81, 50, 5.0)
    small = settings_shown(command, capsys, "--model", "wan-i2v-14B-480P", "--image", picture, *asked)
    assert (small["num_steps"], small["shift"]) == (40, 3.0)
    assert settings_shown(command, capsys, "--model", "wan-t2v-14B", "--num-frames", 1, *asked)["frames"] == 1


@pytest.mark.slow
def test_dry_run_shows_steps_flops_and_bytes_at_full_size(command, capsys):
    flags = ["--model", "wan-t2v-1.3B", "--prompt", "two cats boxing", "--interval", 5]
    code, out, err = run(command, capsys, *flags, "--dry-run", "--json")
    assert code == 0, err
    shown = json.loads(out)
    batch = shown["batch"]["taylorseer-N5-W1-O1"]
    assert batch["full_steps"] == list(range(0, 50, 5))
    assert batch["flops_T_uncached"] == pytest.approx(50 * batch["flops_T_full_step"])
    assert 4.9 < batch["flops_ratio"] < 5
    tokens = 21 * 30 * 52
    assert batch["kept_bytes"]["layerwise"] >= 2 * 30 * tokens * 1536 * 2, "two branches, thirty blocks, bf16"
    assert shown["output_dir"].startswith("outputs/wan/wan-t2v-1.3B-")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "wan-t2v-1.3B", "--num-frames", 80, "--prompt", "a"], "number of frames 80 must be 4k + 1 for wan-t2v"),
        (["--num-frames", 17], "number of frames 17 must be a multiple of 2 for wan-debug; 16 is near"),
        (["--size", "30*32"], "width 30 must be a positive multiple of 4 for wan-debug; 32 is near"),
        (["--size", "32"], "argument --size: 32 is not WIDTH*HEIGHT, such as 832*480"),
        (["--size", "32*32", "--height", 32], "--size is height and width; leave out --height and --width, or it"),
        (["--model", "wan-t2v-1.3B", "--width", 1280], "1280*480 is not one of wan-t2v-1.3B; choose from 832*480, 480*832"),
        (
            ["--model", "wan-i2v-14B-480P", "--height", 720, "--width", 1280, "--prompt", "a", "--image", "photo.png"],
            "size 1280*720 is not one of wan-i2v-14B-480P; choose from 832*480, 480*832 (width*height)",
        ),
        (["--model", "wan-t2v-15B"], "argument --model/--task: invalid choice: 'wan-t2v-15B'"),
        (["--model", "wan-i2v-14B", "--prompt", "a"], "wan-i2v-14B needs --image, the first frame"),
        (["--image", "photo.png"], "--image photo.png has no effect on wan-debug"),
        (["--model", "wan-i2v-14B", "--prompt", "a", "--image", "/nowhere/p.png"], "image /nowhere/p.png cannot be read"),
        (["--model", "wan-t2v-14B"], 'wan-t2v-14B needs --prompt "…" or --prompt-file FILE'),
        (["--prompt", "red unicorn"], "'unicorn' in 'red unicorn' is not a known word; write"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file exclude each other"),
        (["--prompt-file", "/nowhere/p.txt"], "prompt file /nowhere/p.txt cannot be read"),
        (
            ["--model", "wan-t2v-1.3B", "--prompt", "a/b", "--vbench"],
            "cannot be called after the prompt 'a/b': it holds a slash; give its name apart",
        ),
        (["--ulysses-degree", 2], "ulysses degree 2 does not divide the number of processes, 1"),
        (["--dit-fsdp"], "--dit-fsdp shares weights among processes that share videos; give --ulysses-degree or"),
        (["--dit-fsdp", "--ulysses-degree", 1], "--dit-fsdp shares weights among processes, and this is one; use torchrun"),
        (["--t5-cpu"], "--t5-cpu has no effect on wan-debug; leave it out"),
        (["--vae", "x.pth"], "--vae has no effect on wan-debug"),
        (
            ["--model", "wan-t2v-1.3B", "--prompt", "a", "--t5-fsdp", "--t5-cpu", "--ring-degree", 1],
            "--t5-fsdp and --t5-cpu exclude each other",
        ),
        (["--flickering-samples", "--prompt", PROMPTS[0]], "--flickering-samples has no effect on videos that are numbered"),
        (["--quality", "11"], "'11' is neither a number from"),
        (["--compile", "--engine", "layerwise"], "--compile works with engines whose steps are all alike"),
        (["--offload-model", "maybe"], "argument --offload-model: 'maybe' is neither True nor False"),
        (["--warmup-steps", 7], "warmup_steps = 7"),
        (["--device", "tpu"], "device 'tpu' is"),
        (["--ckpt", "/nowhere/x.safetensors"], "/nowhere/x.safetensors (does not exist)"),
        (["--seed", -1], "argument --seed/--base-seed: -1 must be at least 0"),
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
    for option in (["--output-dir", tmp_path / "file"], ["--save-file", tmp_path / "file" / "x.mp4"]):
        line = refusal(command, capsys, *flags, "--prompt", PROMPTS[0], *option)
        assert f"output directory {tmp_path / 'file'} cannot be written" in line
        assert "choose another one" in line


def test_a_damaged_checkpoint_is_refused(command, capsys, flags, checkpoint, tmp_path):
    state = load_file(checkpoint)
    state["head.head.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    line = refusal(command, capsys, *flags, "--ckpt", tmp_path / "nan.pt", "--prompt", PROMPTS[0])
    assert "NaN or infinity in 1 tensors (head.head.bias)" in line


@pytest.mark.usefixtures("uncounted")
def test_missing_weights_are_all_named_at_once(command, capsys, monkeypatch, tmp_path, picture):
    for name in ("WAN_I2V_14B_480P", "WAN_VAE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = ["--t5", tmp_path / "t5", "--clip", tmp_path / "clip", "--output-dir", tmp_path / "out"]
    asked = ["--model", "wan-i2v-14B-480P", "--image", picture, "--prompt", "a cat"]
    code, _, err = run(command, capsys, *asked, *nowhere)
    assert code == 2
    for part in (
        "wan-i2v-14B-480P needs 4 parts that are not here:", "transformer: diffusion_pytorch_model*",
        "named by WAN_I2V_14B_480P",
        "Wan2.1_VAE.pth", "named by WAN_VAE", str(tmp_path / "t5"), str(tmp_path / "clip"),
        "hf download Wan-AI/Wan2.1-I2V-14B-480P ",
    ):  # fmt: skip
        assert part in err
    assert err.count("hf download") == 2, "a command for each repository"
