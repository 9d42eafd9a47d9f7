"""sampling.py on the debug model: what it makes of its flags, and every bad input in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hidream.pipeline
from cache_dic import UserError
from evaluation import jobs
from hidream import hidream_config
from hidream.config import CONFIGS, USAGE
from hidream.text import LLAMA_REPO
from seerkit.command.cli import run_command
from seerkit.io.media import read_png_settings
from seerkit.weights.checkpoints import export_safetensors

SCRIPT = "TaylorSeer-HiDream/sampling.py"
LABELS = ["uncached", "taylorseer-N4-W1-O2", "taylorseer-N6-W1-O2", "fora-N4-W1", "fora-N6-W1"]
THREE = ["red apple, noto", "rocket, 3d render", "sunflower"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, random_model) -> Path:
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, random_model(torch.float32, hidream_config("hidream-debug")).state_dict())
    return path


@pytest.fixture
def run(load_command, capsys, checkpoint, tmp_path):
    """`run(*flags)` -> exit code, stdout and stderr of the command; later flags overrule those given here."""
    command = load_command(SCRIPT)
    given = ["--model", "hidream-debug", "--ckpt", checkpoint, "--num-steps", 9, "--output-dir", tmp_path / "out"]

    def call(*flags: object, alone: bool = False) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(command.main, [str(flag) for flag in (flags if alone else (*given, *flags))])
        return (stop.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def settings_of(run):
    """`settings_of(*flags)`: what --dry-run says the images depend on, and what a batch costs by label."""

    def shown(*flags: object) -> tuple[dict[str, Any], dict[str, Any]]:
        code, out, err = run(*flags, "--dry-run", "--json", alone=True)
        assert code == 0, err
        record = json.loads(out)
        return record["settings"], record["batch"]

    return shown


@pytest.fixture
def sampled(run, tmp_path):
    """`sampled(folder, *flags)`: the bytes of the images of three prompts by LABEL/NUMBER, without settings in them."""

    def images(folder: str, *flags: object) -> dict[str, bytes]:
        out = tmp_path / folder
        code, _, err = run("--output-dir", out, "--no-add-sampling-metadata", "--prompt", *THREE, *flags)
        assert code == 0, err
        return {f"{path.parent.name}/{path.stem}": path.read_bytes() for path in sorted(out.rglob("0*.png"))}

    return images


@pytest.fixture
def uncounted(monkeypatch) -> None:
    """FLOPs of a published model take seconds to count."""
    monkeypatch.setattr(jobs, "count_caches", lambda *_, **__: {})


@pytest.fixture(params=["unipc", "flash"])
def solver(request, monkeypatch) -> str:
    """The debug model sampled as Full is, or as Dev."""
    if request.param == "flash":
        usage = replace(USAGE["hidream-debug"], solver="flash", shift=6.0, guidance=1.0)
        monkeypatch.setitem(USAGE, "hidream-debug", usage)
    return request.param


def test_compare_writes_images_grid_and_record_and_prints_the_table(run, tmp_path):
    code, out, err = run("--compare", "--prompt", *THREE)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines() if line.split(" ")[0] in LABELS] == LABELS
    assert "folded engine keeps" in err, "the run announces what it keeps"
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    by_label = {row["label"]: row for row in record["rows"]}
    assert list(by_label) == LABELS
    assert by_label["taylorseer-N4-W1-O2"]["full_steps"] == [0, 4, 8]
    assert by_label["taylorseer-N4-W1-O2"]["psnr"]["mean_db"] > 0
    assert by_label["taylorseer-N4-W1-O2"]["flops_ratio"] > 2
    assert record["scorer"] is None
    own = read_png_settings(tmp_path / "out" / "fora-N6-W1" / "000001.png")
    assert (own["model"], own["prompt"], own["cache"]) == ("hidream-debug", THREE[1], "fora-N6-W1")
    assert (own["guidance"], own["negative_prompt"], own["solver"]) == (3.0, "", "unipc")


@pytest.mark.slow
def test_an_image_depends_on_prompt_seed_and_number_alone(sampled, solver):
    """Also of the noise that the flash solver adds at every step, the same for every cache; whatever ran before."""
    torch.randn(300, 64) @ torch.randn(64, 96)  # MKL reads how to sum no later than here
    caches = ["--method", "uncached", "taylorseer", "--interval", 1, 3]
    whole = sampled("whole", *caches, "--batch-size", 3)
    numbers = [f"{index:06d}" for index in range(3)]
    assert len({whole[f"uncached/{n}"] for n in numbers}) == 3
    for number in numbers:
        assert whole[f"taylorseer-N1-W1-O2/{number}"] == whole[f"uncached/{number}"]
        assert whole[f"taylorseer-N3-W1-O2/{number}"] != whole[f"uncached/{number}"]
    assert sampled("single", *caches, "--batch-size", 1) == whole
    other = sampled("seed", *caches, "--batch-size", 3, "--seed", 1)
    assert all(other[name] != whole[name] for name in whole)


@pytest.mark.slow
def test_guidance_up_to_one_runs_no_second_branch(sampled, settings_of):
    two, one, none = (sampled(f"guidance {weight}", "--guidance-scale", weight) for weight in (3, 1, 0))
    assert one == none
    assert all(two[name] != one[name] for name in one)
    assert sampled("told", "--negative-prompt", "house") != two
    (guided,), (unguided,) = (
        settings_of("--model", "hidream-debug", "--guidance-scale", weight)[1].values() for weight in (3, 1)
    )
    assert guided["flops_T_full_step"] == pytest.approx(2 * unguided["flops_T_full_step"], rel=1e-3), (
        "but the modulation"
    )


def test_prompts_can_have_several_images(run, tmp_path):
    code, _, err = run("--prompt", *THREE[:2], "--samples-per-prompt", 2, "--batch-size", 3)
    assert code == 0, err
    paths = sorted((tmp_path / "out" / LABELS[1]).glob("0*.png"))
    assert [read_png_settings(path)["prompt"] for path in paths] == [THREE[0], THREE[0], THREE[1], THREE[1]]
    assert len({path.read_bytes() for path in paths}) == 4


def test_a_killed_run_goes_on(run, tmp_path):
    flags = ["--prompt", *THREE, "--batch-size", 1, "--json"]
    folder = tmp_path / "out" / LABELS[1]
    assert run(*flags)[0] == 0
    whole = {path: path.read_bytes() for path in sorted(folder.glob("0*.png"))}
    times = {path: path.stat().st_mtime_ns for path in whole}
    (folder / "000001.png").unlink()
    code, out, err = run(*flags, "--resume")
    assert code == 0, err
    assert json.loads(out)["rows"][0]["latency"]["repeats"] == 1
    assert {path: path.read_bytes() for path in sorted(folder.glob("0*.png"))} == whole
    assert [path.stem for path in whole if path.stat().st_mtime_ns != times[path]] == ["000001"]
    code, _, err = run(*flags, "--resume", "--guidance-scale", 2)
    assert code == 2
    assert "guidance is 3.0 there and 2.0 here; choose another --output-dir" in err


def test_options_that_change_where_weights_are_change_no_pixel(sampled):
    plain = sampled("plain")
    assert sampled("modulation", "--offload-modulation") == plain
    assert sampled("all", "--offload") == plain


@pytest.mark.parametrize("form", ["--fp8", "--nf4"])
def test_weights_in_fewer_bits(sampled, need, form):
    if form == "--nf4":
        need("bitsandbytes")
    images = sampled("packed", form)
    assert images.keys() == {f"{LABELS[1]}/{index:06d}" for index in range(3)}
    assert images != sampled("plain")


# ------------------------------------------------------------------------------------------------------------ published


def test_dry_run_shows_steps_flops_and_bytes_at_full_size(settings_of):
    settings, batch = settings_of("--model", "hidream-full", "--prompt", "a fox")
    (cost,) = batch.values()
    assert cost["full_steps"] == list(range(0, 50, 4))
    assert (settings["num_steps"], settings["guidance"], settings["solver"], settings["shift"]) == (
        50,
        5.0,
        "unipc",
        3.0,
    )
    steps = cost["flops_T_full_step"], cost["flops_T_forecast_step"]
    assert cost["flops_T"] == pytest.approx(13 * steps[0] + 37 * steps[1] + cost["flops_T_engine"])
    assert cost["flops_T_uncached"] == pytest.approx(50 * steps[0])
    branches, tokens, width, bytes_each = 2, 4096, 2560, 4
    sums = 3 * 3  # of a feature and its two differences, for three forecast steps
    assert cost["kept_bytes"]["folded"] == sums * branches * tokens * width * bytes_each
    sites, factors = 2 * (16 + 32), 3
    assert cost["kept_bytes"]["layerwise"] == sites * factors * branches * tokens * width * 2, "bf16"


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("kind", "steps", "shift"), [("dev", 28, 6.0), ("fast", 16, 3.0)])
def test_distilled_models_have_their_own_settings(settings_of, kind, steps, shift):
    settings, _ = settings_of("--model", f"hidream-{kind}", "--prompt", "a fox")
    assert (settings["num_steps"], settings["shift"], settings["solver"]) == (steps, shift, "flash")
    assert (settings["guidance"], settings["negative_prompt"]) == (1.0, None)


@pytest.mark.slow
@pytest.mark.usefixtures("uncounted")
def test_reference_flags_are_accepted(settings_of, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\n")
    flags = "--width 768 --height 1360 --num_steps 8 --guidance 0.0 --seed 1 --num_images_per_prompt 2 --batch_size 2"
    settings, _ = settings_of(
        "--prompt_file", prompts, *flags.split(), "--model_type", "dev", "--output_dir", "x", "--add_sampling_metadata"
    )
    assert (settings["height"], settings["width"], settings["num_steps"], settings["seed"]) == (1360, 768, 8, 1)
    assert (settings["guidance"], settings["batch_size"]) == (0, 2)
    assert settings["prompts"] == ["a fox", "a fox", "a cat", "a cat"]


class FakeEncoders:
    """Stands in for four encoders; the folders and options that it is given are noted in `made`."""

    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # noqa: RUF012, one list for all

    encoded: list[str] = []  # noqa: RUF012

    def __init__(self, *folders: Path | None, **options: Any) -> None:
        self.made.append((folders, options))

    def encode_to_files(self, prompts: list[str], folder: None) -> "FakeEncoders":
        assert folder is None
        self.encoded.extend(prompts)
        return self

    def load_batch(self, prompts: list[str]) -> tuple[Tensor, ...]:
        draw = torch.Generator().manual_seed(0)
        shapes = (len(prompts), 128, 24), (len(prompts), 2, 128, 40), (len(prompts), 12)
        return tuple(torch.randn(shape, generator=draw) for shape in shapes)


class FakeAutoencoder(torch.nn.Module):
    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_a_published_model_from_prompt_to_image(run, random_model, monkeypatch, tmp_path):
    """Dev with few channels: its own checkpoint, four encoders, one hidden state of Llama a block, its autoencoder."""
    config = replace(
        CONFIGS["hidream-debug"], patch_size=2, in_channels=16, out_channels=16, caption_channels=(24, 40),
        text_emb_dim=12, llama_layers=(0, 1, 1),
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "hidream-dev", config)
    export_safetensors(tmp_path / "dev.safetensors", random_model(torch.float32, config).state_dict())
    searched = []
    for name, fake in {
        "TextEncoders": FakeEncoders,
        "find_encoder": lambda encoder, given: searched.append((encoder.flag, given)),
        "find_autoencoder": lambda *given: searched.append(given), "load_autoencoder": lambda *_: FakeAutoencoder(),
        "encoder_files": lambda _: [], "autoencoder_files": lambda _: [],
    }.items():  # fmt: skip
        monkeypatch.setattr(hidream.pipeline, name, fake)
    flags = ["--model", "hidream-dev", "--ckpt", tmp_path / "dev.safetensors", "--prompt", "a fox", "a cat", "a fox"]
    code, out, err = run(*flags, "--width", 64, "--height", 48, "--llama", "somewhere", "--offload", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["full_steps"] == [0, 4, 8]
    assert FakeEncoders.encoded == ["a fox", "a cat"], "each once, and no negative one"
    (folders, options) = FakeEncoders.made.pop()
    assert folders == (None, None, None, Path("somewhere"))
    assert (options["max_length"], options["offload"], options["nf4"]) == (128, True, False)
    assert searched == [
        ("hidream-dev", None), ("--t5", None), ("--clip-l", None), ("--clip-g", None), ("--llama", Path("somewhere"))
    ]  # fmt: skip
    assert len({path.read_bytes() for path in (tmp_path / "out").rglob("0*.png")}) == 3


@pytest.mark.usefixtures("uncounted")
def test_missing_weights_are_all_named_at_once(run, monkeypatch, tmp_path):
    for name in ("HIDREAM_FULL", "HIDREAM_VAE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders = [(flag, tmp_path / flag) for flag in ("--t5", "--clip-l", "--clip-g", "--llama")]
    nowhere = [part for pair in folders for part in pair]
    code, _, err = run(
        *nowhere, "--model", "hidream-full", "--prompt", "a fox", "--output-dir", tmp_path / "x", alone=True
    )
    assert code == 2
    assert err.count("error:") == 1, "one message"
    assert err.count("hf download") == 2, "a command for each repository"
    for part in (
        "  transformer: ", "  autoencoder: ", "named by HIDREAM_FULL", "named by HIDREAM_VAE",
        *(str(folder) for _, folder in folders),
        "  hf download HiDream-ai/HiDream-I1-Full --include 'transformer/diffusion_pytorch_model*' --include vae/",
        f"  hf download {LLAMA_REPO} ", f"access must be requested at https://huggingface.co/{LLAMA_REPO}",
    ):  # fmt: skip
        assert part in err


@pytest.mark.usefixtures("uncounted")
def test_a_missing_llama_is_all_that_is_asked_for(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("find_hidream", "find_autoencoder", "checkpoint_files", "autoencoder_files", "encoder_files"):
        monkeypatch.setattr(hidream.pipeline, name, lambda *_: [])
    found = hidream.pipeline.find_encoder
    monkeypatch.setattr(
        hidream.pipeline, "find_encoder", lambda encoder, given: "Llama" not in encoder.name or found(encoder, given)
    )
    code, _, err = run("--model", "hidream-fast", "--prompt", "a fox", "--llama", tmp_path / "llama")
    assert code == 2
    assert "hidream-fast needs a part that is not here:\n  text encoder Llama-3.1-8B-Instruct: " in err
    assert f"looked in: --llama {tmp_path / 'llama'} (not a folder)" in err
    assert err.count("hf download") == 1
    assert "access must be requested" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "large"], "argument --model/--model-type: invalid choice: 'large' (choose from"),
        (["--width", 30], "width 30 must be a positive multiple of 4 for hidream-debug; 32 is near"),
        (
            ["--model", "hidream-full", "--height", 1000, "--prompt", "a"],
            "height 1000 must be a positive multiple of 16",
        ),
        (["--model", "hidream-full", "--height", 1040, "--prompt", "a"], "positions for 4096; 1024 x 1008 fits"),
        (["--model", "hidream-dev"], 'hidream-dev needs --prompt "…" or --prompt-file FILE'),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file exclude each other"),
        (["--prompt-file", "/nowhere/prompts.txt"], "prompt file /nowhere/prompts.txt cannot be read"),
        (["--samples-per-prompt", 0], "argument --samples-per-prompt/--num-images-per-prompt: 0 must be at least 1"),
        (["--guidance-scale", -1], "argument --guidance-scale/--guidance: -1 must be at least 0 and finite"),
        (["--guidance-scale", "nan"], "argument --guidance-scale/--guidance: nan must be at least 0 and finite"),
        (
            ["--guidance-scale", 1, "--negative-prompt", "blur"],
            "--negative-prompt 'blur' has no effect with guidance 1",
        ),
        (["--warmup-steps", 10], "warmup_steps = 10"),
        (["--fp8", "--nf4"], "argument --nf4: not allowed with argument --fp8"),
        (["--compile", "--engine", "layerwise"], "--compile works with engines whose steps are all alike"),
        (["--device", "tpu"], "device 'tpu' is"),
        (["--ckpt", "/nowhere/x.safetensors"], "/nowhere/x.safetensors (does not exist)"),
    ],
)
def test_bad_input_is_named_in_one_line(run, more, message):
    code, _, err = run(*more)
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0


def test_nf4_without_its_kernels_is_refused_before_anything_is_fetched(run, monkeypatch):
    def missing(device):
        raise UserError("weights in 4 bits need bitsandbytes")

    monkeypatch.setattr(hidream.pipeline, "nf4_kernels", missing)
    monkeypatch.setattr(hidream.pipeline, "find_hidream", lambda *_: pytest.fail("looked for weights"))
    code, _, err = run("--nf4", "--prompt", "house")
    assert code == 2
    assert "weights in 4 bits need bitsandbytes" in err
