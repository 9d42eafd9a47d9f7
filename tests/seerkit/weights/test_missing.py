"""Parts of a model looked for together: nothing where all is there, else one list and commands that put all in its place."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import dit.flags
import dit.pipeline
import flux.pipeline
import hidream.pipeline
import hunyuan_video.pipeline
import wan.pipeline
from evaluation.jobs import digests
from seerkit.command.cli import run_command
from seerkit.weights.checkpoints import NotFoundError, Published
from seerkit.weights.missing import MissingError, Part, find_parts

OWN = Published("transformer/model.safetensors.index.json", repo="someone/Model")
VAE = Published("vae.safetensors", repo="someone/Model")
OTHER = Published("other.safetensors", repo="else/Encoder")
AWAY = Published("far.pt", url="https://far.away/far.pt")


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints, tmp_path, monkeypatch) -> Path:
    """Where downloads would be; nothing is there, and nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return without_checkpoints(*(name for env in ENVIRONMENT.values() for name in env))


def part(name: str, origin: Published, found: list[Path] | None = None, *, told: dict | None = None, **more) -> Part:
    def search() -> list[Path]:
        if found is None:
            raise NotFoundError("it is nowhere", **(told or {}))
        return found

    return Part(name=name, origin=origin, search=search, **{"flag": "--ckpt", **more})


def message(model: str, *parts: Part) -> list[str]:
    with pytest.raises(MissingError) as caught:
        find_parts(model, {one.name: one for one in parts})
    return str(caught.value).splitlines()


# ------------------------------------------------------------------------------------------------------------- message


def test_what_is_there_is_not_mentioned(nowhere):
    one = part("one", OWN, [Path("weights")])
    assert find_parts("model", {"key": one}) == {"key": [Path("weights")]}
    assert message("model", one, part("two", OTHER, flag="--encoder", hint="ask for access")) == [
        "model needs a part that is not here:",
        f"  two: other.safetensors  looked in: {nowhere.name}/Encoder, the hub's cache  from: else/Encoder",
        "Fetch it:",
        f"  hf download else/Encoder --include other.safetensors --local-dir {nowhere}/Encoder",
        "(ask for access)",
        "Or name your own with --encoder.",
    ]


def test_a_line_for_each_part_and_a_command_for_each_repository(nowhere):
    reasons = ("someone/Model: no network", "https://far.away/far.pt: no network", "else/Encoder: not allowed")
    said = message(
        "model",
        part("transformer", OWN, env="OURS", told={"failures": reasons[:1]}, hint="ask them"),
        part("encoder", OTHER, flag="--encoder", told={"failures": reasons[2:]}),
        part("autoencoder", VAE, flag="--vae", hint="ask them"),
        part("far", AWAY, told={"failures": reasons[1:2]}),
    )
    assert said == [
        "model needs 4 parts that are not here:",
        f"  transformer: transformer/model*  looked in: $OURS (not set), {nowhere.name}/Model, the hub's cache  "
        "from: someone/Model",
        f"  encoder: other.safetensors  looked in: {nowhere.name}/Encoder, the hub's cache  from: else/Encoder",
        f"  autoencoder: vae.safetensors  looked in: {nowhere.name}/Model, the hub's cache  from: someone/Model",
        f"  far: far.pt  looked in: {nowhere.name}, torch.hub's cache  from: https://far.away/far.pt",
        "  download failed: no network, not allowed",
        "Fetch all of them:",
        f"  curl -L --fail --create-dirs -o {nowhere}/far.pt https://far.away/far.pt &&",
        "  hf download someone/Model --include 'transformer/model*' --include vae.safetensors --local-dir "
        f"{nowhere}/Model &&",
        f"  hf download else/Encoder --include other.safetensors --local-dir {nowhere}/Encoder",
        "(ask them)",
        "Or name your own with --ckpt, --encoder, --vae, $OURS.",
    ]


def test_what_names_another_place_is_to_be_left_out(monkeypatch):
    """Where the user names a place, nothing is looked for where the command puts it."""
    monkeypatch.setenv("OURS", "/gone")
    said = message(
        "model",
        part("one", OWN, env="OURS", told={"named": "/gone (does not exist, named by OURS)"}),
        part("two", OTHER, flag="--encoder", given="mine", told={"named": "mine (is empty)"}),
    )
    assert "looked in: /gone (does not exist, named by OURS)  from" in said[1]
    assert "looked in: --encoder mine (is empty)  from" in said[2]
    assert said[-2] == "Then leave out --encoder and unset OURS, beside which no other place is looked in."


def test_a_copy_that_is_there_in_part_is_completed(nowhere):
    """Wherever it is, by its own command; nothing needs to be left out for that."""
    incomplete = {"named": "/some/where, without b", "command": "hf download someone/Model b --local-dir /some/where"}
    said = message("model", part("one", OWN, given="/some/where", told=incomplete), part("two", OTHER))
    assert said[3:-1] == [
        "Fetch all of them:",
        f"  {incomplete['command']} &&",
        f"  hf download else/Encoder --include other.safetensors --local-dir {nowhere}/Encoder",
    ]


def test_other_errors_pass():
    def damaged() -> list[Path]:
        raise ValueError("NaN")

    with pytest.raises(ValueError, match="NaN"):
        find_parts("model", {"one": Part(name="one", origin=OWN, search=damaged, flag="--ckpt")})


def test_a_command_keeps_its_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda _: find_parts("model", {"one": part("one", OTHER)}))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sample.py: error: model needs a part that is not here:"
    assert lines[1].startswith("  one: ")
    assert lines[2] == "Fetch it:"
    assert lines[3].startswith("  hf download ")


# ------------------------------------------------------------------------------------------------------------ commands

ENVIRONMENT = {
    "dit": ("DIT_CHECKPOINT",),
    "flux": ("FLUX_DEV", "FLUX_SCHNELL", "AE"),
    "hidream": ("HIDREAM_FULL", "HIDREAM_DEV", "HIDREAM_FAST", "HIDREAM_VAE"),
    "hunyuan": ("HUNYUAN_VIDEO", "HUNYUAN_VAE"),
    "wan": ("WAN_T2V_1_3B", "WAN_I2V_14B_480P", "WAN_VAE"),
}


def args(**given: object) -> Namespace:
    names = (
        *("ckpt", "ae", "vae", "t5", "clip", "clip_l", "clip_g", "llama", "llm", "nf4", "dit_fsdp", "t5_fsdp"),
        *("image", "ulysses_degree", "ring_degree", "compile"),
    )
    return Namespace(**{**dict.fromkeys(names), **given})


def find_dit() -> dict[str, list[Path]]:
    given = args(model="DiT-XL/2", image_size=256, num_classes=None, guidance_scale=4.0, guide_all_channels=False)
    return dit.pipeline.find_everything(given, dit.flags.config_of(given))


MODELS: dict[str, tuple[Callable[[], dict[str, list[Path]]], int, list[str]]] = {
    # what finds the parts, their number, and the beginnings of the commands that fetch them
    "dit": (find_dit, 2, ["curl -L", "hf download stabilityai/sd-vae-ft-ema"]),
    "flux-dev": (
        lambda: flux.pipeline.find_everything(args(model="flux-dev")),
        4,
        ["hf download black-forest-labs/FLUX.1-dev"],
    ),
    "flux-schnell": (
        lambda: flux.pipeline.find_everything(args(model="flux-schnell")),
        4,
        ["hf download black-forest-labs/FLUX.1-schnell"],
    ),
    "hidream": (
        lambda: hidream.pipeline.find_everything(args(model="hidream-dev")),
        6,
        ["hf download HiDream-ai/HiDream-I1-Dev", "hf download meta-llama/Llama-3.1-8B-Instruct"],
    ),
    "hunyuan": (
        lambda: hunyuan_video.pipeline.find_everything(args(model="hunyuan-video")),
        4,
        ["hf download tencent/HunyuanVideo", "hf download hunyuanvideo-community/HunyuanVideo"],
    ),
    "wan-t2v": (
        lambda: wan.pipeline.find_everything(args(model="wan-t2v-1.3B")),
        3,
        ["hf download Wan-AI/Wan2.1-T2V-1.3B", "hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers"],
    ),
    "wan-i2v": (
        lambda: wan.pipeline.find_everything(args(model="wan-i2v-14B-480P", image=Path(__file__))),
        4,
        ["hf download Wan-AI/Wan2.1-I2V-14B-480P", "hf download Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"],
    ),
}

FAKE = {
    # Makes what a repository may have under the patterns: whole models in their folders, a file or shards for others.
    "hf": """
import json, sys
from pathlib import Path
assert sys.argv[1] == "download" and sys.argv[-2] == "--local-dir", sys.argv
folder, patterns = Path(sys.argv[-1]), sys.argv[4:-2:2]
for pattern in patterns:
    path = folder / pattern
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in ("*", "*.json"):
        for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
            path.with_name(name).write_text("{}")
        path.with_name("model.safetensors").write_text("weights")
    elif path.name.endswith("*"):
        stem = str(path)[:-1]
        shard = Path(stem + "-00001-of-00001.safetensors")
        shard.write_text("weights")
        Path(stem + ".safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard.name}}))
    else:
        path.write_text("weights")
""",
    "curl": """
import sys
from pathlib import Path
path = Path(sys.argv[sys.argv.index("-o") + 1])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("weights")
""",
}


@pytest.mark.parametrize("model", list(MODELS))
def test_the_commands_put_everything_where_it_is_looked_for(model, tmp_path):
    """Pasted into a shell as they are printed, with programs that only make files."""
    find, number, commands = MODELS[model]
    with pytest.raises(MissingError) as caught:
        find()
    lines = str(caught.value).splitlines()
    assert f" needs {number} parts that are not here:" in lines[0]
    first = lines.index("Fetch all of them:") + 1
    pasted = lines[first : first + len(commands)]
    assert [shlex.split(line)[:3] for line in pasted if "hf" in line] == [
        shlex.split(line) for line in commands if "hf" in line
    ]
    assert not lines[first + len(commands)].startswith("  "), "and no more"

    for name, code in FAKE.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}{code}")
        program.chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", "\n".join(pasted)], env=path, check=True)
    found = find()
    assert len([key for key in found if key != "first frame"]) == number
    assert all(path.is_file() for paths in found.values() for path in paths)

    before = digests(found)
    for part, (*_, path) in found.items():
        if part == "first frame":
            continue
        path.write_bytes(path.read_bytes() + b" ")
        after = digests(find())
        assert [name for name in before if before[name] != after[name]] == [part], "claims tell contents part by part"
        before = after
