"""run.py: the embedded FLUX inside diffusers' pipeline gives the images of sample.py; a pipeline's folder is taken, too."""

import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from tiny_pipelines import flux as tiny_flux
from torch import Tensor

import taylorseers_diffusers.pipeline
from cache_dic import UserError
from flux.latents import pack, unpack
from seerkit.command.cli import run_command
from taylorseers_diffusers import enable
from taylorseers_diffusers.embedded import PackedPixels, embedded_flux

COMMAND = "TaylorSeers-Diffusers/run.py"
PROMPT = "red apple, noto"


def run(command, capsys, *flags: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(flag) for flag in flags])
    return (stop.value.code, *capsys.readouterr())


def test_pixels_are_packed_as_the_model_takes_them() -> None:
    """The pipeline's own unpacking and the stand-in for an autoencoder together are the model's unpacking."""
    image = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    latents = diffusers.FluxPipeline._unpack_latents(pack(image, 4), 32, 16, vae_scale_factor=2)
    assert latents.shape == (2, 12, 16, 8)
    assert torch.equal(PackedPixels(4).decode(latents).sample, image)
    assert torch.equal(unpack(pack(image, 4), 32, 16, 4), image)


def test_the_embedded_pipeline_is_called_as_any_other() -> None:
    pipe = embedded_flux()
    pipe.set_progress_bar_config(disable=True)
    enable(pipe, interval=2, max_order=1, warmup_steps=1)
    images = pipe([PROMPT, "rocket, 3d render"], num_inference_steps=4, num_images_per_prompt=2).images
    assert [image.size for image in images] == [(32, 32)] * 4
    assert "2 of 4 steps full" in str(pipe.cache_report())


@pytest.mark.slow
def test_images_are_those_of_sample_py(load_command, capsys, tmp_path) -> None:
    flags = [
        "--prompt",
        PROMPT,
        "rocket, 3d render",
        "--num-steps",
        16,
        "--compare",
        "--interval",
        3,
        "--method",
        "taylorseer",
    ]
    made = {}
    for name in (COMMAND, "TaylorSeer-FLUX/sample.py"):
        code, _, err = run(load_command(name), capsys, *flags, "--seed", 5, "--output-dir", tmp_path / name)
        assert code == 0, err
        made[name] = {p.relative_to(tmp_path / name): p for p in sorted((tmp_path / name).rglob("00000*.png"))}
    assert len(made[COMMAND]) == 4
    for file, path in made[COMMAND].items():
        ours, other = (torch.tensor(list(Image.open(p).get_flattened_data())) for p in (path, made[name][file]))
        assert (ours - other).abs().max() <= 1, file
    record = json.loads((tmp_path / COMMAND / "record.json").read_text())
    uncached, cached = record["rows"]
    assert uncached["label"] == "uncached"
    assert cached["full_steps"] == [0, 1, 2, 5, 8, 11, 14]
    assert cached["flops_ratio"] == pytest.approx(16 / 7, rel=0.05)
    assert cached["kept_bytes"] > 0
    assert (tmp_path / COMMAND / "index.html").is_file()


@pytest.fixture
def folder(monkeypatch) -> Path:
    """A folder of a pipeline of another class, which would need text encoders: texts are made up."""
    tiny = tiny_flux()

    def load(_: object, **__: object) -> object:
        return tiny.pipe

    def encode(prompt: list[str], **_: object) -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.Generator().manual_seed(len(prompt[0]))
        states = torch.randn(len(prompt), 8, 32, generator=draw)
        return states, torch.randn(len(prompt), 32, generator=draw), torch.zeros(8, 3)

    tiny.pipe.encode_prompt = encode
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", load)
    return tiny


def test_any_folder_of_a_pipeline_is_taken(folder, load_command, capsys, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    flags = ["--model", tmp_path / "model", "--prompt", "fox", "--num-steps", 6, "--height", 16, "--width", 16]
    flags += ["--precision", "fp32", "--method", "uncached", "taylorseer", "first_block_cache", "--warmup-steps", 2]
    code, out, err = run(load_command(COMMAND), capsys, *flags, "--output-dir", tmp_path / "out")
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "record.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["uncached", "taylorseer", "first_block_cache"]
    assert rows[1]["full_steps"] == [0, 1]
    assert [row["flops_ratio"] for row in rows] == [None] * 3, "nobody has counted this model"
    assert rows[2]["full_steps_by_batch"] == [rows[2]["full_steps"]]
    assert rows[1]["label"] in (tmp_path / "out" / "index.html").read_text()
    assert Image.open(tmp_path / "out" / "uncached" / "000000.png").size == (16, 16)
    assert "–" in out
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["settings"]["guidance"] is None, "the pipeline's own"


def test_what_the_readme_shows_is_what_is_printed(capsys) -> None:
    text = (Path(__file__).parents[2] / "TaylorSeers-Diffusers" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- runs -->\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"<!-- printed -->\n```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == shown
    assert names["image"].size == (32, 32)


class TestErrors:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (
                "--model nosuch --prompt fox",
                "--model nosuch is neither flux-tiny, a folder nor a name on the hub, such as",
            ),
            (
                "--model flux-dev --prompt fox --height 1024 --width 1024",
                "; did you mean black-forest-labs/FLUX.1-dev?",
            ),
            ("--method toca --prompt fox --dry-run", "method 'toca' computes some tokens of a block"),
            ("--model {tmp} --prompt fox", "is no folder of a pipeline: it has no model_index.json"),
            ("--model a/b", 'a/b needs --prompt "…" or --prompt-file'),
            ("--offload model", "--offload model has no effect on the CPU"),
            (
                "--height 30",
                "height 30 must be a positive multiple of 4 for flux-tiny; 32 is near; did you mean --model black",
            ),
            (
                "--model black-forest-labs/FLUX.1-dev --height 8 --prompt fox",
                "height 8 must be a positive multiple of 16",
            ),
        ],
    )
    def test_one_line(self, load_command, capsys, tmp_path, monkeypatch, flags, message) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = run(load_command(COMMAND), capsys, *flags.format(tmp=tmp_path).split(), "--device", "cpu")
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err
        assert not list(tmp_path.rglob("*.png"))

    def test_a_pipeline_that_cannot_be_had(self, monkeypatch) -> None:
        def offline(_: str) -> str:
            raise OSError("no network\nand a long story")

        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", offline)
        with pytest.raises(UserError) as caught:
            taylorseers_diffusers.pipeline.find_folder("black-forest-labs/FLUX.1-dev")
        for part in (
            "FLUX.1-dev (FLUX.1: 34 GB) is",
            ": no network;",
            "--local-dir DIR`, then give --model DIR",
            "hf auth login",
        ):
            assert part in str(caught.value)
        assert "long story" not in str(caught.value)


@pytest.mark.slow
def test_a_plan_of_a_known_model_counts_its_operations(load_command, capsys) -> None:
    load_command(COMMAND).main(["--model", "black-forest-labs/FLUX.1-dev", "--dry-run"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["batch"]["taylorseer-N6-W3-O2"]["flops_ratio"] == pytest.approx(4.997, abs=1e-3)


def test_a_plan_needs_no_weights_or_network(load_command, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_command(COMMAND).main(["--model", "some/Model", "--dry-run", "--interval", "10"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["batch"]["taylorseer-N10-W3-O2"]["full_steps"] == [0, 1, 2, 12, 22, 32, 42]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_tells_by_its_files_which_published_model_it_holds(load_command, capsys, tmp_path) -> None:
    (tmp_path / "transformer").mkdir()
    config = {"_class_name": "FluxTransformer2DModel", "num_layers": 19, "num_single_layers": 38, "in_channels": 64}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({**config, "guidance_embeds": True}))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    flags = ["--model", tmp_path, "--prompt", "fox", "--method", "teacache", "--dry-run"]
    code, out, _ = run(load_command(COMMAND), capsys, *flags)
    assert code == 0
    assert list(json.loads(out)["batch"]) == ["teacache-threshold=0.25-calibration=flux+2Ddev"]

    (tmp_path / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 8}))
    code, _, err = run(load_command(COMMAND), capsys, *flags)
    assert code == 2
    assert "teacache has no polynomial for this model" in err
