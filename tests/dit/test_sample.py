"""sample.py on the debug model: what it writes and prints, and every bad input in one line with exit code 2."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit.pipeline
from cache_dic import ENGINES
from dit import DiT, dit_config
from seerkit.command.cli import run_command
from seerkit.devices.compile import compile_steps
from seerkit.io.media import read_png_settings
from seerkit.weights.checkpoints import export_safetensors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-DiT/sample.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A debug model with every weight random."""
    model, generator = DiT(dit_config("debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, model.state_dict())
    return path


def run(command, capsys, *flags: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(flag) for flag in flags])
    return (stop.value.code, *capsys.readouterr())


def test_compare_writes_grid_and_record_and_prints_the_table(command, capsys, checkpoint, tmp_path):
    flags = ["--model", "debug", "--ckpt", checkpoint, "--compare", "--num-steps", 12, "--output-dir", tmp_path]
    code, out, err = run(command, capsys, *flags)
    assert code == 0, err
    labels = ["uncached"] + [f"taylorseer-N{n}-W2-O{o}" for n, o in ((3, 3), (4, 4), (5, 3))] + [
        f"fora-N{n}-W2" for n in (3, 4, 5)
    ]  # fmt: skip
    rows = [line.split()[0] for line in out.splitlines() if line.split() and line.split()[0] in labels]
    assert rows == labels
    assert "folded engine keeps" in err, "the run announces what it keeps"

    record = json.loads((tmp_path / "record.json").read_text())
    by_label = {row["label"]: row for row in record["rows"]}
    assert by_label["uncached"]["flops_ratio"] == 1
    assert by_label["uncached"]["psnr"] is None
    assert by_label["taylorseer-N4-W2-O4"]["full_steps"] == [0, 1, 5, 9]
    assert by_label["taylorseer-N4-W2-O4"]["psnr"]["mean_db"] > 0
    assert by_label["taylorseer-N4-W2-O4"]["flops_ratio"] > 2
    assert [s["kind"] for s in by_label["fora-N5-W2"]["steps"]].count("full") == len(
        by_label["fora-N5-W2"]["full_steps"]
    )
    assert record["conditions"]["versions"]["torch"] == torch.__version__.split("+")[0]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height > 7 * 64
    assert read_png_settings(tmp_path / "grid.png")["model"] == "debug"


def test_json_is_one_object_and_samples_do_not_depend_on_the_batch(command, capsys, checkpoint, tmp_path):
    common = [
        "--model",
        "debug",
        "--ckpt",
        checkpoint,
        "--num-steps",
        6,
        "--interval",
        3,
        "--json",
        "--compare",
    ]
    scores = {}
    for size in (1, 2, 6):
        code, out, _ = run(
            command,
            capsys,
            *common,
            "--batch-size",
            size,
            "--samples-per-class",
            2,
            "--output-dir",
            tmp_path / str(size),
        )
        assert code == 0
        record = json.loads(out)
        assert record["num_samples"] == 6
        scores[size] = [row["psnr"]["mean_db"] for row in record["rows"][1:]]
    assert None not in scores[1]
    assert scores[1] == pytest.approx(scores[2], abs=0.05)
    assert scores[1] == pytest.approx(scores[6], abs=0.05)


@pytest.mark.slow
def test_dry_run_shows_steps_flops_and_bytes_of_every_engine(command, capsys):
    code, out, _ = run(
        command,
        capsys,
        "--model",
        "DiT-XL/2",
        "--image-size",
        256,
        "--samples-per-class",
        1,
        "--batch-size",
        1,
        "--dry-run",
        "--json",
    )
    assert code == 0
    shown = json.loads(out)["batch"]["taylorseer-N4-W2-O4"]
    assert shown["full_steps"] == [0, 1, *range(5, 50, 4)]
    assert shown["flops_T_uncached"] == pytest.approx(23.74, rel=0.005)
    assert shown["flops_T"] == pytest.approx(6.66, rel=0.005)
    assert set(shown["kept_bytes"]) == {*ENGINES}


def test_reference_flags_are_accepted(command, capsys):
    flags = "--ddim-sample --num-sampling-steps 50 --interval 4 --max-order 4 --cfg-scale 4.0 --image-size 256 --seed 1"
    code, out, _ = run(
        command, capsys, "--model", "DiT-XL/2", *flags.split(), "--vae", "mse", "--num-classes", 1000, "--test-FLOPs"
    )
    assert code == 0
    assert json.loads(out)["taylorseer-N4-W2-O4"]["flops_ratio"] == pytest.approx(3.56, abs=0.01)


@pytest.mark.slow
def test_a_method_of_ones_own(run_script, checkpoint, tmp_path):
    """The README's plug-in, as a file beside the baselines."""
    readme = (ROOT / "README.md").read_text()
    code = readme.split("<!-- plugin -->")[1].split("```python\n")[1].split("```")[0]
    plugin = tmp_path / "damped.py"
    plugin.write_text(code)
    flags = [
        "--model",
        "debug",
        "--ckpt",
        checkpoint,
        "--num-steps",
        8,
        "--compare",
        "--interval",
        3,
        "--json",
    ]
    chosen = ["--plugin", plugin, "--method", "damped", "taylorseer", "--set", "damping=0.8"]
    completed = run_script("TaylorSeer-DiT/sample.py", *flags, *chosen, "--output-dir", tmp_path)
    assert completed.returncode == 0, completed.stderr
    labels = [row["label"] for row in json.loads(completed.stdout)["rows"]]
    assert labels == ["uncached", "damped-N3-W2-damping=0.8", "taylorseer-N3-W2-O3"]


def images_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("0*.png")}


def test_a_run_goes_on_and_weights_on_the_host_change_no_byte(command, capsys, checkpoint, tmp_path):
    """Only batches in which something is missing are made, here by a pipeline that keeps weights on the host."""
    flags = ["--model", "debug", "--ckpt", checkpoint, "--num-steps", 6, "--interval", 3, "--output-dir", tmp_path]
    assert run(command, capsys, *flags, "--samples-per-class", 2)[0] == 0
    before = images_in(tmp_path)
    assert len(before) == 6
    paths = sorted(tmp_path.rglob("0*.png"))
    paths[3].unlink()
    paths[4].write_bytes(paths[4].read_bytes()[:-20])
    untouched = paths[0].stat().st_mtime_ns
    code, _, err = run(command, capsys, *flags, "--samples-per-class", 2, "--resume", "--offload")
    assert code == 0, err
    assert images_in(tmp_path) == before
    assert paths[0].stat().st_mtime_ns == untouched


@pytest.mark.slow
def test_more_images_go_on_in_a_folder_and_others_at_their_numbers_do_not(command, capsys, checkpoint, tmp_path):
    flags = ["--model", "debug", "--ckpt", checkpoint, "--num-steps", 6, "--interval", 3, "--batch-size", 2]

    def sampled(folder: str, classes: str, per_class: int) -> tuple[int, str]:
        more = ["--output-dir", tmp_path / folder, "--classes", classes, "--samples-per-class", per_class, "--resume"]
        code, _, err = run(command, capsys, *flags, *more)
        return code, err

    def images(folder: str, classes: str, per_class: int) -> dict[str, bytes]:
        code, err = sampled(folder, classes, per_class)
        assert code == 0, err
        return images_in(tmp_path / folder)

    two, four = images("samples", "0,1", 1), images("samples", "0,1", 2)
    assert (len(two), len(four)) == (2, 4)
    assert two.items() <= four.items()
    code, err = sampled("samples", "0,1,2", 1)
    assert code == 2
    assert "prompt 2 is '0' there and '2' here; choose another --output-dir" in err
    assert images_in(tmp_path / "samples") == four
    assert images("classes", "0,1", 1).items() <= images("classes", "0,1,2", 1).items()


@pytest.mark.slow
def test_compiled_steps_make_the_same_images(command, capsys, checkpoint, monkeypatch, num_graphs, tmp_path):
    """By graphs of full and of forecast steps; the others of the folder are then not taken for theirs."""
    monkeypatch.setattr(dit.pipeline, "compile_steps", partial(compile_steps, backend="eager"))
    flags = ["--model", "debug", "--ckpt", checkpoint, "--num-steps", 6, "--interval", 3]
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert run(command, capsys, *flags, "--output-dir", plain)[0] == 0
    assert num_graphs() == 0
    code, _, err = run(command, capsys, *flags, "--compile", "--output-dir", compiled)
    assert code == 0, err
    assert num_graphs() == 2, "one for full steps, one for forecast steps"
    paths = sorted(plain.rglob("0*.png"))
    assert len(paths) == 12
    for path in paths:
        ours, theirs = (np.asarray(Image.open(file), int) for file in (path, compiled / path.relative_to(plain)))
        assert abs(ours - theirs).max() <= 1, "a grey level, from another order of sums"
    code, _, err = run(command, capsys, *flags, "--output-dir", compiled, "--resume")
    assert code == 2
    assert "compile is true there and not set here" in err
    code, _, err = run(command, capsys, *flags, "--compile", "--output-dir", plain, "--resume")
    assert code == 2
    assert "compile is not set there and true here" in err


BAD = {
    "method": (["--method", "taylor"], "method 'taylor' is unknown; choose from taylorseer"),
    "model": (["--model", "DiT-H/2"], "invalid choice: 'DiT-H/2'"),
    "engine": (["--engine", "fast"], "invalid choice: 'fast'"),
    "unknown flag": (["--intervall", "3"], "unrecognized arguments: --intervall 3"),
    "interval": (["--interval", "0"], "argument --interval: 0 must be at least 1"),
    "interval text": (["--interval", "four"], "argument --interval: 'four' is not an integer"),
    "order": (["--max-order", "-1"], "argument --max-order: -1 must be at least 0"),
    "order without effect": (["--method", "fora", "--max-order", "2"], "max_order = 2 has no effect with fora"),
    "warm-up": (["--warmup-steps", "60"], "warmup_steps = 60 must lie between 1 and the number of steps, 50"),
    "full steps": (["--full-steps", "0,70"], "full_steps ends with 70, but the run has steps 0 … 49"),
    "too many steps": (["--num-steps", "2000"], "number of sampling steps 2000 must lie between 1 and 1000"),
    "class": (["--classes", "0,3"], "class '3' is not known; give numbers 0 … 2"),
    "number of classes": (["--num-classes", "7"], "--num-classes 7 does not fit debug, which has 3"),
    "guidance": (["--guidance-scale", "nan"], "argument --guidance-scale/--cfg-scale: nan must be above 0 and finite"),
    "image size": (["--image-size", "30"], "image size 30 does not fit debug"),
    "device": (["--device", "cuda"], "device 'cuda' is not there"),
    "device name": (["--device", "gpu"], "device 'gpu' is unknown"),
    "checkpoint": (["--ckpt", "nowhere.pt"], "nowhere.pt"),
    "compilation": (["--compile", "--engine", "layerwise"], "--compile works with engines whose steps are all alike"),
    "attention": (["--attention", "flash"], "needs the package flash_attn"),
    "memory": (["--memory-limit-gib", "0.0000001"], "what would fit"),
    "setting": (["--set", "damping"], "'damping' is not KEY=VALUE"),
    "plugin": (["--plugin", "nowhere.py"], "--plugin nowhere.py is not a file"),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(command, capsys, checkpoint, tmp_path, flags, message):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    common = [
        "--model",
        "debug",
        *([] if "--ckpt" in flags else ["--ckpt", checkpoint]),
        "--output-dir",
        tmp_path / "out",
    ]
    code, out, err = run(command, capsys, *common, *flags)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 2
    assert out == ""
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_damaged_weights_leave_earlier_results_alone(command, capsys, checkpoint, tmp_path):
    """Truncated, wrong shape, NaN and pickled code: named, and what the run before has made is untouched."""
    common = ["--model", "debug", "--num-steps", 4, "--interval", 2]
    assert run(command, capsys, *common, "--output-dir", tmp_path / "out", "--ckpt", checkpoint)[0] == 0

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = contents()
    state = DiT(dit_config("debug")).state_dict()
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(checkpoint.read_bytes()[:-100])
    wrong, nan, code = tmp_path / "wrong.pt", tmp_path / "nan.pt", tmp_path / "code.pt"
    torch.save({**state, "final_layer.linear.bias": torch.zeros(5)}, wrong)
    torch.save({**state, "final_layer.linear.bias": torch.full((32,), float("nan"))}, nan)
    torch.save({"ema": pytest.approx(1)}, code)
    for path, message in [
        (truncated, "truncated.safetensors"),
        (wrong, "final_layer.linear.bias"),
        (nan, "final_layer.linear.bias"),
        (code, "code"),
    ]:
        exit_code, _, err = run(command, capsys, *common, "--output-dir", tmp_path / "new", "--ckpt", path)
        assert exit_code == 2
        assert message in err
        assert "Traceback" not in err
        exit_code, _, err = run(command, capsys, *common, "--output-dir", tmp_path / "out", "--ckpt", path)
        assert exit_code == 2
        assert "contents.transformer is" in err, "of other weights, whatever they are"
        assert contents() == before


def test_a_black_picture_does_not_pass_for_a_perfect_one(command, capsys, checkpoint, tmp_path):
    flags = ["--model", "debug", "--ckpt", checkpoint, "--num-steps", 8, "--output-dir", tmp_path / "out"]
    code, _, err = run(command, capsys, *flags, "--precision", "fp16", "--guidance-scale", "1e6", "--compare")
    assert code == 2
    (line,) = (line for line in err.splitlines() if "error:" in line)
    for part in ("sample 0, 1, 2 of uncached", "NaN or infinity", "take --precision fp32 or a lower guidance weight"):
        assert part in line
    assert "Traceback" not in err
    assert not list((tmp_path / "out").rglob("*.png"))
    assert run(command, capsys, *flags, "--compare")[0] == 0, "the remedy works, in the same folder"


def test_unwritable_output_is_named(command, capsys, checkpoint, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = run(command, capsys, "--model", "debug", "--ckpt", checkpoint, "--output-dir", blocked / "out")
    assert code == 2
    assert f"output directory {blocked / 'out'} cannot be written" in err


def test_missing_official_weights_are_all_named_at_once(command, capsys, without_checkpoints, monkeypatch, tmp_path):
    """Nothing is sampled; a list names the files and the places looked in, then come the commands that fetch them."""
    checkpoints = without_checkpoints("DIT_CHECKPOINT")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    flags = ["--model", "DiT-XL/2", "--image-size", 256, "--vae", "mse", "--output-dir", tmp_path / "out"]
    code, _, err = run(command, capsys, *flags)
    assert code == 2
    for part in (
        "error: DiT-XL/2 needs 2 parts that are not here:",
        "  transformer: DiT-XL-2-256x256.pt  looked in: $DIT_CHECKPOINT (not set), ",
        "  autoencoder: diffusion_pytorch_model.safetensors, config.json  looked in: checkpoints/sd-vae-ft-mse, ",
        f"curl -L --fail --create-dirs -o {checkpoints}/DiT-XL-2-256x256.pt "
        "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt &&",
        "hf download stabilityai/sd-vae-ft-mse --include diffusion_pytorch_model.safetensors --include config.json",
        "Or name your own with --ckpt, --vae, $DIT_CHECKPOINT.",
    ):
        assert part in err
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("official", "canonical"),
    [
        (["--num_sampling_steps", "7"], ["--num-steps", "7"]),
        (["--cfg-scale", "2.5"], ["--guidance-scale", "2.5"]),
        (["--global-seed", "3"], ["--seed", "3"]),
        (["--ddpm-sample"], ["--solver", "ddpm"]),
        (["--image_size=16"], ["--image-size", "16"]),
        (["--per-class", "2"], ["--samples-per-class", "2"]),
        (["--out", "x"], ["--output-dir", "x"]),
    ],
)
def test_official_spellings_and_underscores_mean_the_same(command, official, canonical):
    assert command.parse_args(official) == command.parse_args(canonical) != command.parse_args([])
