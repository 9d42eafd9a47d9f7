"""What the image commands share, on a pipeline that only pretends; with real models in tests of the commands."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache_dic import make_cache
from evaluation import jobs
from evaluation.images import SHOWN, Folder, ImageJob, add_image_flags, judge, png_settings, run
from evaluation.metrics import psnr
from evaluation.scorer import load_scorer
from seerkit.cli import Parser
from seerkit.media import read_png_settings, to_uint8
from seerkit.minilm import TEXT_TABLE, TextTable
from seerkit.prompts import Batch
from seerkit.seeds import SampleGenerators

SIDE = 8
CONTRAST = {"uncached": 1.0, "taylorseer": 0.9, "fora": 0.5}  # of what each method makes
CACHES = {method: make_cache(method) for method in CONTRAST}
FOUR = ["red apple, noto", "rocket, 3d render", "sunflower", "house"]


def noise(*indices: int) -> torch.Tensor:
    return SampleGenerators(0, indices).randn(3, SIDE, SIDE).clamp(-1, 1)


class FakePipeline:
    """Images of noise by their number, paler with a cache; notes what it is asked for."""

    def __init__(self, batches: list[Batch], device: torch.device) -> None:
        self.prompts, self.sampled = [prompt for batch in batches for prompt in batch.prompts], []

    def sample(self, cache, batch, callback):
        self.sampled.append((cache.method, *batch.indices))
        record = {"num_steps": 4, "full_steps": [0, 2], "kept_bytes": 1024}
        return noise(*batch.indices) * CONTRAST[cache.method], SimpleNamespace(record=lambda: record)

    def decode(self, latents):
        return latents


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """`carry_out(*flags, prompts=)`: the record of a job with every cache, two images a batch, and its pipeline or None."""
    counts = {"flops_T": 1.0, "flops_T_uncached": 2.0, "flops_ratio": 2.0, "full_steps": [0, 2]}
    counts["kept_bytes"] = {"folded": 1024, "layerwise": 0}
    monkeypatch.setattr(jobs, "count_caches", lambda _, caches, *__, **___: dict.fromkeys(caches, counts))

    def carry(*flags: str, prompts=FOUR, scored=False, **settings: Any) -> tuple[Any, FakePipeline | None]:
        parser, pipelines = Parser("Make images.", ""), []
        add_image_flags(parser, folder="fake")
        args = parser.parse_args(["--output_dir", str(tmp_path / "out"), *flags])
        vars(args).update(device="cpu", precision="fp32", batch_size=2, accumulator_dtype=None)
        shown = {"model": "fake", "width": SIDE, "height": SIDE, "num_steps": 4, "batch_size": 2, "prompts": prompts}
        record = run(
            ImageJob(
                command="fake.py", args=args, prompts=list(prompts), caches=CACHES,
                settings=shown | settings, sizes={"height": SIDE, "width": SIDE}, out=args.output_dir, scored=scored,
                find=lambda: None,
                make_pipeline=lambda *given: pipelines.append(FakePipeline(*given)) or pipelines[-1],
            )
        )  # fmt: skip
        return record, pipelines[0] if pipelines else None

    return carry


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def pngs(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("0*.png"))}


def test_a_job_leaves_images_grid_and_record(carry_out, out, capsys):
    record, _ = carry_out()
    assert list(pngs(out)) == sorted(f"{label}/{i:06d}.png" for label in CACHES for i in range(4))
    pixels = np.asarray(Image.open(out / "taylorseer" / "000002.png"))
    assert np.array_equal(pixels, to_uint8(noise(2) * CONTRAST["taylorseer"])[0])
    own = read_png_settings(out / "fora" / "000003.png")
    assert own == png_settings(record["settings"], label="fora", prompt=FOUR[3], index=3)
    assert "prompts" not in own
    assert read_png_settings(out / "grid.png") == record["settings"]
    assert json.loads((out / "record.json").read_text()) == record
    rows = {row["label"]: row for row in record["rows"]}
    assert rows["uncached"]["psnr"] is None
    assert rows["taylorseer"]["psnr"]["mean_db"] > rows["fora"]["psnr"]["mean_db"] > 0
    assert rows["fora"]["latency"]["repeats"] == 2, "batches"
    assert (record["num_samples"], record["scorer"]) == (4, None)
    printed = capsys.readouterr().out
    first_words = [line.partition(" ")[0] for line in printed.splitlines()]
    assert [word for word in first_words if word in CACHES] == list(CACHES)
    assert f"record: {out / 'record.json'}" in printed
    assert "score" not in printed


def test_batches_with_a_missing_image_are_made_again_and_no_others(carry_out, out):
    carry_out()
    before = pngs(out)
    (out / "fora" / "000002.png").unlink()
    (out / "taylorseer" / "000003.png").write_bytes(b"half an image")
    record, pipeline = carry_out("--resume")
    assert pipeline.prompts == FOUR[2:]
    assert set(pipeline.sampled[1:]) == {("taylorseer", 2, 3), ("fora", 2, 3)}, "after the one that is dropped"
    assert pngs(out) == before
    assert record["rows"][0]["latency"] is None, "nothing of it was sampled"
    assert carry_out("--resume")[1] is None, "there is all"
    assert carry_out()[1].prompts == FOUR, "without --resume all is made again"
    with pytest.raises(ValueError, match="seed is None there and 1 here; choose another --output_dir"):
        carry_out("--resume", seed=1)
    assert pngs(out) == before


def test_settings_can_be_left_out_of_the_images(carry_out, out):
    carry_out("--no-add_sampling_metadata")
    assert read_png_settings(out / "fora" / "000000.png") is None


def test_the_grid_shows_the_first_images(carry_out, out):
    sizes = []
    for number in (SHOWN - 1, SHOWN, SHOWN + 1):
        folder = out / str(number)
        carry_out("--output_dir", str(folder), prompts=["house"] * number)
        sizes.append(Image.open(folder / "grid.png").size)
    assert sizes[0][0] < sizes[1][0]
    assert sizes[1] == sizes[2]


def test_the_record_alone_is_printed_on_demand(carry_out, capsys):
    record, _ = carry_out("--json")
    assert json.loads(capsys.readouterr().out) == record


@pytest.mark.parametrize("flag", ["--dry-run", "--test_FLOPs"])
def test_plans_make_nothing(carry_out, out, capsys, flag):
    assert carry_out(flag) == (None, None)
    shown = json.loads(capsys.readouterr().out)
    if flag == "--dry-run":
        assert (shown["output_dir"], shown["settings"]["prompts"]) == (str(out), FOUR)
        shown = shown["batch"]
    assert list(shown) == list(CACHES)
    assert shown["fora"]["flops_ratio"] == 2.0
    assert not out.exists()


def test_emoji_are_scored_with_their_own_prompts(carry_out, capsys):
    """Noise fits no prompt, but the score of a prompt is exact: that of an image with another one is different."""
    record, _ = carry_out(scored=True)
    scorer, y = load_scorer(), TextTable.load(TEXT_TABLE).encode(FOUR)[1]
    images = torch.from_numpy(to_uint8(noise(*range(4)))).permute(0, 3, 1, 2)
    expected = scorer.score(images, y).mean().item()
    assert record["rows"][0]["score"] == pytest.approx(expected, abs=1e-4), "100 times a cosine in float32"
    assert scorer.score(images, y.roll(1, 0)).mean().item() != pytest.approx(expected, abs=1e-2)
    assert record["scorer"]["ceiling"] == scorer.ceiling > record["scorer"]["floor"] == scorer.floor
    assert f"real images reach {scorer.ceiling:.1f}" in capsys.readouterr().out


def test_images_are_judged_against_the_uncached_ones_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE, 3), dtype=np.uint8)
    scores = judge({"uncached": pixels[0], "fora": pixels[1]}, None, None)
    assert scores["uncached"] == {"psnr": None}
    assert scores["fora"]["psnr"]["mean_db"] == pytest.approx(psnr(*pixels).mean())
    assert judge({"fora": pixels[1]}, None, None) == {"fora": {"psnr": None}}


def test_an_image_that_went_missing_is_named(tmp_path):
    folder, batch = Folder(tmp_path, "fora", (SIDE, SIDE, 3)), Batch([0, 1], ["a", "b"])
    images = to_uint8(noise(0, 1))
    folder.claim({"seed": 0}, resume=False)
    folder.write(batch, images, None)
    assert np.array_equal(folder.load(2), images)
    with pytest.raises(ValueError, match=r"fora/000002\.png went missing or was damaged meanwhile; use --resume"):
        folder.load(3)
    assert Folder(tmp_path, "fora", (SIDE, SIDE + 1, 3)).read(0) is None, "of another size"
