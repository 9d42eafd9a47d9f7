import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache_dic import UserError
from dit import DiT, dit_config
from evaluation import fid_samples
from evaluation.fid_samples import class_of
from evaluation.images import decode_finite
from seerkit.command.cli import run_command
from seerkit.io.claims import state_folder
from seerkit.weights.checkpoints import export_safetensors

COMMAND = Path(__file__).parents[2] / "TaylorSeer-DiT" / "sample_ddp.py"
NUM_SAMPLES = 22  # no multiple of the batch sizes below
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

# Latents of samples 0 … 5 by batch size, as hashes; a model wide enough for MKL to choose among kernels.
LATENTS = """
import seerkit.environment
import hashlib, json
import torch
from cache_dic import make_cache
from dit import DiT, DiTConfig
from dit.sampler import Sampler
from seerkit.sampling.seeds import SampleGenerators

config = DiTConfig(input_size=16, patch_size=2, in_channels=1, hidden_size=256, depth=2, num_heads=4, num_classes=10)
model, draw = DiT(config).eval(), torch.Generator().manual_seed(0)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
hashes = {}
for batch_size in (1, 2, 6):
    cache, rows = make_cache("taylorseer", interval=3, max_order=2, group_bytes=2**17), []  # two of the four sites
    for first in range(0, 6, batch_size):
        indices = range(first, first + batch_size)
        noise = SampleGenerators(0, indices).randn(1, 16, 16)
        run = Sampler(model, 5, guidance_scale=1.5).run
        latents, _ = run(noise, torch.tensor(list(indices)), cache=cache)
        rows += [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:12] for row in latents]
    hashes[batch_size] = rows
print(json.dumps(hashes))
"""


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-DiT/sample_ddp.py")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Weights of the debug model that leave nothing at zero."""
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    draw = torch.Generator().manual_seed(0)
    state = DiT(dit_config("debug")).state_dict()
    random = {name: torch.randn(value.shape, generator=draw) * 0.1 for name, value in state.items()}
    export_safetensors(path, {**random, "pos_embed": state["pos_embed"]})
    return path


def arguments(checkpoint: Path, sample_dir: Path, *more: object) -> list[str]:
    flags = ["--model", "debug", "--ckpt", checkpoint, "--output-dir", sample_dir, "--num-fid-samples", NUM_SAMPLES]
    return [str(part) for part in (*flags, "--device", "cpu", "--batch-size", 4, *more)]


@pytest.fixture(scope="session")
def run(run_script):
    return functools.partial(run_script, "TaylorSeer-DiT/sample_ddp.py")


def images_and_npz(sample_dir: Path) -> dict[str, str]:
    """Hashes of every PNG and of the .npz."""
    files = [*sample_dir.glob("*/[0-9]*.png"), *sample_dir.glob("*.npz")]
    return {str(file.relative_to(sample_dir)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="session")
def whole(run, checkpoint, tmp_path_factory) -> Path:
    """The folder of a run on one process, not interrupted."""
    sample_dir = tmp_path_factory.mktemp("whole")
    done = run(*arguments(checkpoint, sample_dir))
    assert done.returncode == 0, done.stderr
    return sample_dir


def test_npz_is_what_numpy_would_write_of_the_images(whole):
    (npz,) = whole.glob("*.npz")
    images = np.load(npz)["arr_0"]
    assert (images.shape, images.dtype) == ((NUM_SAMPLES, 8, 8, 3), np.uint8)
    for index, pixels in enumerate(images):
        grey = np.asarray(Image.open(npz.with_suffix("") / f"{index:06d}.png"))
        np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=-1))
    assert len({pixels.tobytes() for pixels in images}) == NUM_SAMPLES
    numpys = io.BytesIO()
    np.savez(numpys, arr_0=images)
    assert npz.read_bytes() == numpys.getvalue()


FOLDER = "debug-taylorseer-N4-W2-O4-ddim-steps-50-cfg-1.5-seed-0"


def test_the_folder_holds_images_alone_and_the_record_lies_beside(whole):
    assert {path.name for path in whole.iterdir()} == {FOLDER, f"{FOLDER}.npz", f"{FOLDER}.json", "state"}
    assert sorted(path.name for path in (whole / FOLDER).iterdir()) == [f"{i:06d}.png" for i in range(NUM_SAMPLES)]
    claim = json.loads((state_folder(whole, FOLDER) / "claim.json").read_text())
    record = json.loads((whole / f"{FOLDER}.json").read_text())
    assert record["settings"] == claim
    (made,) = record["runs"]
    assert (made["num_samples"], made["num_made"], made["num_processes"]) == (NUM_SAMPLES, NUM_SAMPLES, 1)
    assert made["run"]["full_steps"] == [0, 1, *range(5, 50, 4)]
    assert made["conditions"]["device"]
    assert made["seconds"] > 0


@pytest.mark.slow
def test_processes_and_batch_size_do_not_change_a_byte(run, whole, checkpoint, tmp_path):
    done = run(*arguments(checkpoint, tmp_path, "--batch-size", 5, "--json"), processes=2)
    assert done.returncode == 0, done.stderr
    assert images_and_npz(tmp_path) == images_and_npz(whole)
    record = json.loads(done.stdout)  # rank 0 alone prints
    assert record["num_processes"] == 2


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_same_bytes(run, whole, checkpoint, tmp_path):
    argv = arguments(checkpoint, tmp_path, "--batch-size", 2)
    with subprocess.Popen([sys.executable, COMMAND, *argv], env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while len(list(tmp_path.glob("*/[0-9]*.png"))) < 5:  # not the one half written
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    folder = tmp_path / FOLDER
    made = sorted(folder.glob("[0-9]*.png"))
    assert 5 <= len(made) < NUM_SAMPLES
    assert not list(tmp_path.glob("*.npz"))
    complete = images_and_npz(whole)
    assert all(complete[name] == value for name, value in images_and_npz(tmp_path).items())

    made[1].write_bytes(made[1].read_bytes()[:-20])
    made[3].write_bytes(b"")
    Image.new("L", (4, 4)).save(made[4])  # whole, but of another size
    (folder / ".000003.abcdef.partial.png").write_bytes(b"half")
    (tmp_path / f".{folder.name}.abcdef.partial.npz").write_bytes(b"half")
    untouched = made[0].stat().st_mtime_ns
    done = run(*arguments(checkpoint, tmp_path, "--batch-size", 2, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_made"] == NUM_SAMPLES - len(made) + 3
    assert made[0].stat().st_mtime_ns == untouched
    assert images_and_npz(tmp_path) == complete
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries promise no order of summation")
def test_latents_do_not_depend_on_batch_size_or_threads():
    found = []
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", LATENTS],
            env={**ENVIRONMENT, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found += json.loads(done.stdout).values()
    assert len(set(found[0])) == 6
    assert all(rows == found[0] for rows in found[1:])


def refusal(command, monkeypatch, capsys, argv: list[str]) -> str:
    """The one line that a refused command writes, its exit code checked."""
    monkeypatch.setattr(sys, "argv", [str(COMMAND)])
    with pytest.raises(SystemExit) as left:
        run_command(command.main, argv)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--precision", "bf16"], "precision is 'fp32' there and 'bf16' here"),
        (["--no-tf32"], "tf32 is true there and false here"),
        (["--accumulator-dtype", "float64"], "cache.accumulator_dtype is not set there and 'float64' here"),
    ],
)
def test_other_settings_are_refused(whole, checkpoint, command, monkeypatch, capsys, flags, said):
    before = images_and_npz(whole)
    assert said in refusal(command, monkeypatch, capsys, arguments(checkpoint, whole, *flags))
    assert images_and_npz(whole) == before


def test_other_weights_are_refused(whole, command, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.safetensors"
    export_safetensors(other, {k: v + 1 for k, v in DiT(dit_config("debug")).state_dict().items()})
    assert "contents.transformer is" in refusal(command, monkeypatch, capsys, arguments(other, whole))


def test_refusals_name_the_remedy(checkpoint, command, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    in_a_file = refusal(command, monkeypatch, capsys, arguments(checkpoint, tmp_path / "file"))
    assert "cannot be written" in in_a_file
    assert "choose another" in in_a_file
    several = refusal(command, monkeypatch, capsys, arguments(checkpoint, tmp_path, "--interval", 3, 4))
    assert "name one method and interval" in several
    classes = refusal(command, monkeypatch, capsys, arguments(checkpoint, tmp_path, "--num-classes", 1000))
    assert "--num-classes 1000 does not fit debug, which has 3" in classes
    folder = tmp_path / "debug-taylorseer-N4-W2-O4-ddim-steps-50-cfg-1.5-seed-0"
    folder.mkdir(exist_ok=True)
    (folder / "000000.png").touch()
    foreign = refusal(command, monkeypatch, capsys, arguments(checkpoint, tmp_path))
    assert "holds samples, and nothing says how they were made" in foreign


@pytest.mark.slow
def test_a_smaller_number_leaves_the_larger_npz(whole, run, checkpoint, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    before = images_and_npz(tmp_path / "copy")
    done = run(*arguments(checkpoint, tmp_path / "copy", "--num-fid-samples", 5, "--json"))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    smaller = tmp_path / "copy" / f"{FOLDER}-5.npz"
    assert Path(record["npz"]) == smaller
    assert record["num_made"] == 0
    assert record["run"] is not None, "what was recorded before stands"
    after = images_and_npz(tmp_path / "copy")
    assert after.pop(smaller.name)
    assert after == before
    assert np.array_equal(np.load(smaller)["arr_0"], np.load(whole / f"{FOLDER}.npz")["arr_0"][:5])


def test_a_record_holds_a_run_of_every_number_of_samples(command, checkpoint, tmp_path, capsys):
    def recorded(count: int, *more: object) -> dict[int, tuple[int, float | None, str | None]]:
        command.main(arguments(checkpoint, tmp_path, "--num-steps", 4, "--num-fid-samples", count, *more))
        (path,) = tmp_path.glob("*.json")
        runs = json.loads(path.read_text())["runs"]
        assert all(run["run"] and run["conditions"] for run in runs)
        return {
            run["num_samples"]: (run["num_made"], run["seconds"], run["npz"] and Path(run["npz"]).name) for run in runs
        }

    def name(more: str = "") -> str:
        return FOLDER.replace("steps-50", "steps-4") + f"{more}.npz"

    first = recorded(6)
    assert (list(first), first[6][0], first[6][2]) == ([6], 6, name())
    capsys.readouterr()
    assert recorded(2) == {2: (0, None, name("-2")), **first}
    assert "2 images, none made now\n" in capsys.readouterr().out
    third = recorded(8)
    assert third == {2: (0, None, name("-2")), 6: (*first[6][:2], None), 8: (2, third[8][1], name())}
    assert recorded(6) == third | {6: (*first[6][:2], name("-6"))}
    next(tmp_path.glob("*/000007.png")).unlink()
    assert recorded(8)[8] == third[8], "the time of more samples stands"
    again = recorded(8, "--no-resume")
    assert again[8][0] == 8
    assert again[6] == (*first[6][:2], name("-6"))


def test_what_an_earlier_version_recorded_is_added_to(command, checkpoint, tmp_path):
    flags = arguments(checkpoint, tmp_path, "--num-steps", 4)
    command.main([*flags, "--num-fid-samples", "4"])
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    (made,) = record.pop("runs")
    path.write_text(json.dumps(record | made))
    command.main([*flags, "--num-fid-samples", "3"])
    smaller, larger = json.loads(path.read_text())["runs"]
    assert (smaller["num_samples"], larger) == (3, made)
    path.write_text(json.dumps({"settings": {}, "runs": [made]}))
    command.main([*flags, "--num-fid-samples", "3"])
    assert [run["num_samples"] for run in json.loads(path.read_text())["runs"]] == [3], "of other samples"


def test_all_are_made_again_where_none_is_to_be_kept(whole, command, checkpoint, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "copy")
    before = images_and_npz(tmp_path / "copy")
    argv = arguments(checkpoint, tmp_path / "copy", "--json")
    for flag, made in (("--no-resume", NUM_SAMPLES), ("--resume", 0)):
        command.main([*argv, flag])
        assert json.loads(capsys.readouterr().out)["num_made"] == made
        assert images_and_npz(tmp_path / "copy") == before


@pytest.mark.parametrize(("flag", "precision"), [("--tf32", "tf32"), ("--no-tf32", "ieee")])
def test_precision_of_products_ends_with_the_samples(command, checkpoint, tmp_path, monkeypatch, flag, precision):
    """What else runs in the process, such as the scores of a table, is not measured with a sampler's TF32."""
    kernels = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    for kernel, before in zip(kernels, ("none", "ieee"), strict=True):
        kernel.fp32_precision = before
    met = []

    def decode(*given: object) -> torch.Tensor:
        met.append([kernel.fp32_precision for kernel in kernels])
        return decode_finite(*given)

    monkeypatch.setattr(fid_samples, "decode_finite", decode)
    command.main(arguments(checkpoint, tmp_path, "--num-fid-samples", 2, "--num-steps", 2, flag, "--json"))
    assert met == [[precision, precision]]
    assert [kernel.fp32_precision for kernel in kernels] == ["none", "ieee"]
    monkeypatch.setattr(fid_samples, "decode_finite", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main(arguments(checkpoint, tmp_path, "--num-fid-samples", 3, "--num-steps", 2, flag, "--json"))
    assert [kernel.fp32_precision for kernel in kernels] == ["none", "ieee"]


def test_compiled_samples_are_others(whole, checkpoint, command, monkeypatch, capsys):
    said = refusal(command, monkeypatch, capsys, arguments(checkpoint, whole, "--compile"))
    assert "compile is not set there and true here" in said


@pytest.mark.slow
def test_what_is_not_finite_is_named_and_no_npz_is_written(run, checkpoint, tmp_path):
    done = run(*arguments(checkpoint, tmp_path, "--precision", "fp16", "--guidance-scale", "1e6", "--num-steps", "8"))
    assert done.returncode == 2, done.stderr
    assert "came out with NaN or infinity" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(("spoilt", "elsewhere"), [(0, ""), (1, "another --output-dir with ")])
def test_what_is_advised_against_infinity_works(command, checkpoint, tmp_path, monkeypatch, capsys, spoilt, elsewhere):
    """In the same folder, or in another where a batch was finished before."""
    batches = itertools.count()
    monkeypatch.setattr(
        fid_samples, "decode_finite", lambda *given: decode_finite(*given) * (np.nan if next(batches) == spoilt else 1)
    )
    argv = arguments(checkpoint, tmp_path / "out", "--num-steps", 2)
    advice = f"; lower --interval or --max-order, or take {elsewhere}--precision fp32 or a lower guidance weight"
    with pytest.raises(UserError, match=advice):
        command.main([*argv, "--precision", "bf16"])
    monkeypatch.setattr(fid_samples, "decode_finite", decode_finite)
    if elsewhere:
        with pytest.raises(UserError, match="precision is 'bf16' there and 'fp32' here"):
            command.main(argv)
        argv = arguments(checkpoint, tmp_path / "other", "--num-steps", 2)
    capsys.readouterr()
    command.main([*argv, "--json"])
    assert json.loads(capsys.readouterr().out)["num_samples"] == NUM_SAMPLES


def test_a_folder_removed_meanwhile_is_named_and_made_by_the_same_command(
    command, checkpoint, tmp_path, monkeypatch, capsys
):
    def removing(*given: object) -> torch.Tensor:
        if any(tmp_path.rglob("000003.png")):
            shutil.rmtree(tmp_path / "out")
        return decode_finite(*given)

    monkeypatch.setattr(fid_samples, "decode_finite", removing)
    argv = arguments(checkpoint, tmp_path / "out", "--num-steps", 2)
    with pytest.raises(UserError, match=r"000000\.png went missing or was damaged meanwhile; run the command again"):
        command.main(argv)
    monkeypatch.setattr(fid_samples, "decode_finite", decode_finite)
    capsys.readouterr()
    command.main([*argv, "--json"])
    assert json.loads(capsys.readouterr().out)["num_made"] == 4


def test_absurd_numbers_are_refused_at_once(command, checkpoint, tmp_path, monkeypatch, capsys):
    said = refusal(command, monkeypatch, capsys, arguments(checkpoint, tmp_path, "--num-fid-samples", 10**9))
    assert "1000000000" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--method", "uncached"], "debug-uncached-N1-W1-ddim-steps-50-cfg-1.5-seed-0"),
        (["--interval", "3"], "debug-taylorseer-N3-W2-O3-ddim-steps-50-cfg-1.5-seed-0"),
        (
            ["--method", "fora", "--solver", "ddpm", "--balanced"],
            "debug-fora-N4-W2-ddpm-steps-50-cfg-1.5-seed-0-balanced",
        ),
    ],
)
def test_folders_are_called_as_they_always_were(command, tmp_path, capsys, flags, name):
    """A run of tens of thousands of samples goes on in its folder, whatever version began it."""
    command.main(arguments(tmp_path / "absent.pt", tmp_path / "samples", "--dry-run", *flags))
    assert Path(json.loads(capsys.readouterr().out)["folder"]).name == name


def test_dry_run_writes_nothing(command, tmp_path, capsys):
    command.main(arguments(tmp_path / "absent.pt", tmp_path / "samples", "--dry-run", "--method", "fora", "--balanced"))
    shown = json.loads(capsys.readouterr().out)
    assert shown["cache"] == "fora-N4-W2"
    assert shown["settings"]["classes"] == "balanced"
    assert shown["npz"] == shown["folder"] + ".npz"
    assert list(tmp_path.iterdir()) == []


def test_classes_are_uniform_or_balanced_and_a_function_of_the_index(command):
    drawn = [class_of(i, 7, 10, balanced=False) for i in range(5000)]
    assert all(abs(drawn.count(c) - 500) < 100 for c in range(10))  # 4.7 standard deviations
    assert drawn[123] == class_of(123, 7, 10, balanced=False)
    assert drawn != [class_of(i, 8, 10, balanced=False) for i in range(5000)]
    assert set(Counter(class_of(i, 7, 10, balanced=True) for i in range(5000)).values()) == {500}
