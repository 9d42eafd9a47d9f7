"""sample.py on the debug model: what it writes and prints, resuming, processes, and every bad input in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flux import Flux, flux_config
from flux.flags import ALSO, add_flags
from seerkit.command.cli import Parser, run_command
from seerkit.command.flags import add_image_flags
from seerkit.data.emoji import PROMPTS
from seerkit.io.images import digest
from seerkit.io.media import read_png_settings
from seerkit.text.prompts import make_batches, read_prompts
from seerkit.weights.checkpoints import export_safetensors

LABELS = ["uncached", "taylorseer-N4-W3-O2", "taylorseer-N6-W3-O2", "fora-N4-W3", "fora-N6-W3"]
THREE = ["red apple, noto", "rocket, 3d render", "sunflower"]


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-FLUX/sample.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A debug model with every weight random."""
    model, generator = Flux(flux_config("flux-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, model.state_dict())
    return path


@pytest.fixture
def flags(checkpoint, tmp_path) -> list[object]:
    return ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 12, "--output-dir", tmp_path / "out"]


def run(command, capsys, *flags: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(flag) for flag in flags])
    return (stop.value.code, *capsys.readouterr())


def images(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("0*.png"))}


def test_compare_writes_images_grid_and_record_and_prints_the_table(command, capsys, flags, tmp_path):
    code, out, err = run(command, capsys, *flags, "--compare", "--prompt", *THREE)
    assert code == 0, err
    rows = [line.split()[0] for line in out.splitlines() if line.split() and line.split()[0] in LABELS]
    assert rows == LABELS
    assert "folded engine keeps" in err, "the run announces what it keeps"
    assert list(images(tmp_path / "out")) == [f"{label}/{i:06d}.png" for label in sorted(LABELS) for i in range(3)]

    record = json.loads((tmp_path / "out" / "record.json").read_text())
    by_label = {row["label"]: row for row in record["rows"]}
    assert by_label["uncached"]["psnr"] is None
    assert by_label["uncached"]["flops_ratio"] == 1
    assert by_label["taylorseer-N6-W3-O2"]["full_steps"] == [0, 1, 2, 8]
    assert by_label["taylorseer-N6-W3-O2"]["psnr"]["mean_db"] > 0
    assert by_label["taylorseer-N6-W3-O2"]["latency"]["ratio"] > 0
    assert record["scorer"] is None
    assert read_png_settings(tmp_path / "out" / "grid.png")["prompts"] == THREE
    own = read_png_settings(tmp_path / "out" / "fora-N4-W3" / "000001.png")
    assert (own["prompt"], own["index"], own["cache"], own["seed"]) == (THREE[1], 1, "fora-N4-W3", 0)


def test_an_image_depends_on_prompt_seed_and_number_alone(command, capsys, flags, tmp_path):
    def sampled(folder: str, *more: object) -> dict[str, bytes]:
        out = tmp_path / folder
        code, _, err = run(command, capsys, *flags[:-1], out, "--no-add_sampling_metadata", "--prompt", *THREE, *more)
        assert code == 0, err
        return images(out)

    whole = sampled("whole", "--batch-size", 3)
    assert sampled("single", "--batch-size", 1) == whole
    other = sampled("seed", "--batch-size", 3, "--seed", 1)
    assert all(other[name] != whole[name] for name in whole)


def test_a_killed_run_goes_on(command, capsys, flags, checkpoint, tmp_path):
    """What is there stays untouched, what is missing or damaged is made, and the end is that of an uninterrupted run."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*THREE, "", "house"]) + "\n")
    flags = [*flags, "--prompt_file", prompts, "--batch-size", 1, "--interval", 4]
    folder = tmp_path / "out" / "taylorseer-N4-W3-O2"
    assert run(command, capsys, *flags)[0] == 0
    expected, times = images(folder), {path: path.stat().st_mtime_ns for path in folder.glob("0*.png")}
    (folder / "000001.png").unlink()
    (folder / "000003.png").write_bytes(b"half an image")
    (folder / ".000002.x.partial.png").write_bytes(b"")
    (tmp_path / "out" / "record.json").unlink()

    code, out, err = run(command, capsys, *flags, "--resume", "--json")
    assert code == 0, err
    assert images(folder) == expected
    kept = {path.name for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert kept == {"000000.png", "000002.png"}
    assert not list(folder.glob(".*partial*"))
    assert json.loads(out)["rows"][0]["latency"]["repeats"] == 1, "of two, the first paid for kernels and memory"

    code, out, _ = run(command, capsys, *flags, "--resume", "--json")
    assert code == 0
    row = json.loads(out)["rows"][0]
    assert row["latency"]["repeats"] == 1, "nothing was made, and what was measured before stands"
    assert row["full_steps"] == [0, 1, 2, 6, 10]

    code, _, err = run(command, capsys, *flags, "--resume", "--seed", 7)
    assert code == 2
    assert "seed is 0 there and 7 here; choose another --output-dir" in err
    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes())
    assert run(command, capsys, *flags, "--resume", "--ckpt", other)[0] == 0, "the same weights in another place"
    state = load_file(checkpoint)
    export_safetensors(other, state | {"final_layer.linear.bias": state["final_layer.linear.bias"] + 1})
    code, _, err = run(command, capsys, *flags, "--resume", "--ckpt", other)
    assert code == 2, "images of two checkpoints are never mixed"
    assert "contents.transformer is" in err
    assert images(folder) == expected, "nothing is lost"


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(command, capsys, flags, tmp_path, run_script):
    common = [*flags[:-1], tmp_path / "two", "--prompt", *THREE, "--batch-size", 1, "--no-add_sampling_metadata"]
    done = run_script("TaylorSeer-FLUX/sample.py", *common, "--device", "cpu", processes=2)
    assert done.returncode == 0, done.stderr
    assert run(command, capsys, *[tmp_path / "one" if f == tmp_path / "two" else f for f in common])[0] == 0
    assert images(tmp_path / "two") == images(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "record.json").read_text())["rows"][0]["latency"]["repeats"] == 1, (
        "the warm one"
    )


def test_options_that_change_where_weights_are_change_no_pixel(command, capsys, flags, tmp_path):
    common = [*flags[:-1]]
    outputs = {}
    for name, more in {"plain": [], "modulation": ["--offload-modulation"], "all": ["--offload"]}.items():
        code, _, err = run(
            command, capsys, *common, tmp_path / name, "--prompt", *THREE, "--no-add_sampling_metadata", *more
        )
        assert code == 0, err
        outputs[name] = images(tmp_path / name)
    assert outputs["plain"] == outputs["modulation"] == outputs["all"]
    assert run(command, capsys, *common, tmp_path / "fp8", "--prompt", *THREE, "--fp8")[0] == 0


def test_dry_run_shows_steps_flops_and_bytes_at_full_size(command, capsys, monkeypatch):
    flags = ["--model", "flux-dev", "--prompt", "a fox", "--interval", 6]
    code, out, _ = run(command, capsys, *flags, "--dry-run", "--json")
    assert code == 0
    shown = json.loads(out)
    batch = shown["batch"]["taylorseer-N6-W3-O2"]
    assert batch["full_steps"] == [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]
    assert batch["flops_T_uncached"] == pytest.approx(3719.50, rel=0.005)
    assert batch["flops_T"] == pytest.approx(744.81, rel=0.005)
    assert batch["kept_bytes"]["folded"] <= 0.8 * 2**30 < batch["kept_bytes"]["layerwise"]
    assert shown["output_dir"] == f"outputs/flux/flux-dev-{digest(shown['settings'])}"
    code, out, _ = run(command, capsys, *flags, "--test_FLOPs")
    assert json.loads(out) == shown["batch"]


@pytest.mark.slow
def test_reference_flags_are_accepted(command, capsys):
    flags = "--model_name flux-schnell --width 512 --height 768 --num_steps 8 --guidance 4.0 --seed 1 --output_dir x"
    code, out, _ = run(
        command,
        capsys,
        *flags.split(),
        "--prompt",
        "a fox",
        "--add_sampling_metadata",
        "--interval",
        3,
        "--dry-run",
        "--json",
    )
    assert code == 0
    settings = json.loads(out)["settings"]
    assert (settings["height"], settings["width"], settings["num_steps"]) == (768, 512, 8)
    assert settings["guidance"] is None, "schnell takes none"


def test_missing_weights_are_all_named_at_once(command, capsys, monkeypatch, tmp_path):
    for name in ("FLUX_DEV", "AE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = ["--t5", tmp_path / "t5", "--clip", tmp_path / "clip", "--output_dir", tmp_path / "out"]
    code, _, err = run(command, capsys, "--model_name", "flux-dev", "--prompt", "a fox", *nowhere)
    assert code == 2
    assert err.count("error:") == 1, "one message"
    assert err.count("hf download") == 1, "one command"
    for part in (
        "flux1-dev.safetensors", "ae.safetensors", "named by FLUX_DEV", "named by AE", str(tmp_path / "t5"),
        "  hf download black-forest-labs/FLUX.1-dev --include flux1-dev.safetensors --include ae.safetensors",
        "hf auth login",
    ):  # fmt: skip
        assert part in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--width", 30], "width 30 must be a positive multiple of 4 for flux-debug; 32 is near"),
        (["--prompt", "a", "--prompt_file", "b"], "--prompt and --prompt-file exclude each other"),
        (["--prompt_file", "/nowhere/prompts.txt"], "prompt file /nowhere/prompts.txt cannot be read"),
        (["--warmup-steps", 13], "warmup_steps = 13"),
        (["--guidance-scale", 0], "argument --guidance-scale/--guidance: 0 must be above 0"),
        (["--device", "tpu"], "device 'tpu' is"),
        (["--compile", "--engine", "layerwise"], "--compile works with engines whose steps are all alike"),
        (["--ckpt", "/nowhere/x.safetensors"], "/nowhere/x.safetensors (does not exist)"),
    ],
)
def test_bad_input_is_named_in_one_line(command, capsys, flags, more, message):
    code, _, err = run(command, capsys, *flags, *more)
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0


def test_prompts(tmp_path, command, capsys):
    shipped = read_prompts(PROMPTS)
    assert len(shipped) == len(set(shipped)) >= 16
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt; write one per line"):
        read_prompts(empty)
    empty.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_prompts(empty)
    code, _, err = run(command, capsys, "--model_name", "flux-dev")
    assert code == 2
    assert "flux-dev needs --prompt" in err
    batches = make_batches(shipped[:5], 2)
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [prompt for batch in batches for prompt in batch.prompts] == shipped[:5]


@pytest.mark.parametrize(
    ("official", "canonical"),
    [
        (["--model_name", "flux-dev"], ["--model", "flux-dev"]),
        (["--num_steps", "7"], ["--num-steps", "7"]),
        (["--guidance", "2.5"], ["--guidance-scale", "2.5"]),
        (["--output_dir=x"], ["--output-dir", "x"]),
        (["--prompt_file", "p.txt"], ["--prompt-file", "p.txt"]),
        (["--no-add_sampling_metadata"], ["--no-add-sampling-metadata"]),
        (["--test_FLOPs"], ["--test-FLOPs"]),
        (["--offload_modulation"], ["--offload-modulation"]),
    ],
)
def test_official_spellings_and_underscores_mean_the_same(official, canonical):
    parser = Parser("Sample.", "sample.py")
    add_flags(parser)
    add_image_flags(parser, ALSO, family="flux")
    assert parser.parse_args(official) == parser.parse_args(canonical) != parser.parse_args([])
