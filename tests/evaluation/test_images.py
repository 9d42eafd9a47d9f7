"""What the image commands share, on a pipeline that only pretends; with real models in tests of the commands."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cache_dic import UserError, make_cache
from evaluation import jobs
from evaluation.images import (
    SHOWN,
    Folder,
    ImageJob,
    emoji_judge,
    judge_images,
    png_settings,
    run,
)
from evaluation.metrics import psnr
from evaluation.scorer import load_scorer
from seerkit.command.cli import Parser
from seerkit.command.flags import add_image_flags
from seerkit.io.images import image_path
from seerkit.io.media import read_png_settings, save_png, to_uint8
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.minilm import TEXT_TABLE, TextTable
from seerkit.text.prompts import Batch

SIDE = 8
CONTRAST = {"uncached": 1.0, "taylorseer": 0.9, "fora": 0.5}  # of what each method makes
CACHES = {method: make_cache(method) for method in CONTRAST}
FOUR = ["red apple, noto", "rocket, 3d render", "sunflower", "house"]


def noise(*indices: int) -> torch.Tensor:
    return SampleGenerators(0, indices).randn(3, SIDE, SIDE).clamp(-1, 1)


class FakePipeline:
    """Images of noise by their number, paler with a cache; notes what it is asked for.

    spoilt: method and number of a sample that comes out with NaN. fails: before the first one. removed: the folder that is
    removed before the second batch.
    """

    spoilt: tuple[str, int] | None = None
    fails = False
    removed: Path | None = None

    def __init__(self, batches: list[Batch], device: torch.device) -> None:
        self.prompts, self.sampled = [prompt for batch in batches for prompt in batch.prompts], []

    def sample(self, cache, batch, callback):
        if self.fails:
            raise RuntimeError("no memory")
        if self.removed and self.sampled and 0 not in batch.indices:
            shutil.rmtree(self.removed)
            self.removed = None
        self.sampled.append((cache.method, *batch.indices))
        record = {"num_steps": 4, "full_steps": [0, 2], "kept_bytes": 1024}
        latents = noise(*batch.indices) * CONTRAST[cache.method]
        for row, index in enumerate(batch.indices):
            if (cache.method, index) == self.spoilt:
                latents[row, 0, 0, 0] = torch.nan
        return latents, SimpleNamespace(record=lambda: record)

    def decode(self, latents):
        return latents


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """`carry_out(*flags, prompts=)`: the record of a job with every cache, two images per batch, and its pipeline or None."""
    counts = {"flops_T": 1.0, "flops_T_uncached": 2.0, "flops_ratio": 2.0, "full_steps": [0, 2]}
    counts["kept_bytes"] = {"folded": 1024, "layerwise": 0}
    monkeypatch.setattr(jobs, "count_caches", lambda _, caches, *__, **___: dict.fromkeys(caches, counts))

    def carry(
        *flags: str, prompts=FOUR, scored=False, caches=CACHES, read=None, **settings: Any
    ) -> tuple[Any, FakePipeline | None]:
        parser, pipelines = Parser("Make images.", ""), []
        add_image_flags(parser, {}, family="fake")
        args = parser.parse_args(["--output-dir", str(tmp_path / "out"), *flags])
        precision = settings.setdefault("precision", "fp32")
        vars(args).update(device="cpu", precision=precision, batch_size=2, accumulator_dtype=None)
        shown = {"model": "fake", "width": SIDE, "height": SIDE, "num_steps": 4, "batch_size": 2, "prompts": prompts}
        record = run(
            ImageJob(
                command="fake.py", args=args, prompts=list(prompts), caches=caches,
                settings=shown | settings, sizes={"height": SIDE, "width": SIDE}, out=args.output_dir,
                find=lambda _: {"transformer": [read] if read else []},
                make_judge=emoji_judge if scored else None,
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
    assert printed.splitlines()[-2:] == [f"record: {out / 'record.json'}", f"page: {out / 'index.html'}"]
    assert record["command_line"].startswith("python fake.py --output")
    assert record["command_line"].endswith(f" {out}")
    assert "score" not in printed


def test_a_run_by_a_script_is_repeated_by_it(carry_out, out, monkeypatch):
    monkeypatch.setenv("TAYLORSEER_SCRIPT", "scripts/run_fake.sh")
    record, _ = carry_out()
    assert record["command_line"].startswith("bash scripts/run_fake.sh --output")
    assert "bash scripts/run_fake.sh " in (out / "index.html").read_text()


def test_batches_with_a_missing_image_are_made_again_and_no_others(carry_out, out):
    carry_out()
    before = pngs(out)
    (out / "fora" / "000002.png").unlink()
    (out / "taylorseer" / "000003.png").write_bytes(b"half an image")
    record, pipeline = carry_out("--resume")
    assert pipeline.prompts == FOUR[2:]
    assert set(pipeline.sampled[1:]) == {("taylorseer", 2, 3), ("fora", 2, 3)}, "after the one that is dropped"
    assert pngs(out) == before
    assert record["rows"][0]["latency"]["repeats"] == 2, "nothing of it was sampled; what was measured before stands"
    assert carry_out("--resume")[1] is None, "there is all"
    assert carry_out()[1].prompts == FOUR, "without --resume all is made again"
    with pytest.raises(UserError, match="seed is not set there and 1 here; choose another --output-dir"):
        carry_out("--resume", seed=1)
    assert pngs(out) == before


def test_settings_can_be_left_out_of_the_images(carry_out, out):
    carry_out("--no-add_sampling_metadata")
    assert read_png_settings(out / "fora" / "000000.png") is None


def test_the_grid_shows_the_first_images(carry_out, out):
    sizes = []
    for number in (SHOWN - 1, SHOWN, SHOWN + 1):
        folder = out / str(number)
        carry_out("--output-dir", str(folder), prompts=["house"] * number)
        sizes.append(Image.open(folder / "grid.png").size)
    assert sizes[0][0] < sizes[1][0]
    assert sizes[1] == sizes[2]


def test_the_record_alone_is_printed_on_demand(carry_out, capsys):
    record, _ = carry_out("--json")
    assert json.loads(capsys.readouterr().out) == record


@pytest.mark.parametrize("flag", ["--dry-run", "--test_FLOPs"])
def test_plans_make_nothing(carry_out, out, capsys, flag):
    assert carry_out(flag, "--json") == (None, None)
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
    assert record["rows"][0]["score"]["mean"] == pytest.approx(expected, abs=1e-4), "100 times a cosine in float32"
    assert record["rows"][1]["score_change"]["num"] == len(FOUR)
    assert scorer.score(images, y.roll(1, 0)).mean().item() != pytest.approx(expected, abs=1e-2)
    assert record["scorer"]["ceiling"] == scorer.ceiling > record["scorer"]["floor"] == scorer.floor
    assert f"real images reach {scorer.ceiling:.1f}" in capsys.readouterr().out


def test_images_are_judged_against_the_uncached_ones_alone(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE, 3), dtype=np.uint8)
    folders = {label: Folder(tmp_path, label, (SIDE, SIDE, 3)) for label in ("uncached", "fora")}
    for folder, images in zip(folders.values(), pixels, strict=True):
        for index, image in enumerate(images):
            save_png(image_path(folder.path, index), image)
    scores = judge_images(folders, ["a", "b", "c"], None)
    assert scores["uncached"] == {"psnr": None}
    assert scores["fora"]["psnr"]["mean_db"] == pytest.approx(psnr(*pixels).mean())
    assert judge_images({"fora": folders["fora"]}, ["a", "b", "c"], None) == {"fora": {"psnr": None}}


def test_an_image_that_went_missing_is_named(tmp_path):
    folder, batch = Folder(tmp_path, "fora", (SIDE, SIDE, 3)), Batch([0, 1], ["a", "b"])
    assert folder.write(batch, noise(0, 1), None) == []
    assert np.array_equal(folder.load(range(2)), to_uint8(noise(0, 1)))
    with pytest.raises(UserError, match=r"fora/000002\.png went missing or was damaged meanwhile; use --resume"):
        folder.load(range(3))
    assert Folder(tmp_path, "fora", (SIDE, SIDE + 1, 3)).read(0) is None, "of another size"


# ------------------------------------------------------------------------------------------------------------- claims


def test_another_rule_of_the_schedule_is_refused_by_name(carry_out, out):
    carry_out(caches={"x": make_cache(interval=5, warmup_steps=1, max_order=1)}, num_steps=12)
    before = pngs(out)
    for flags in ([], ["--resume"]):
        with pytest.raises(
            UserError, match=r"cache\.plan\.full_steps is .* there and .* here; choose another --output-dir"
        ):
            carry_out(
                *flags,
                caches={"x": make_cache(interval=5, warmup_steps=1, max_order=1, schedule="diffusers")},
                num_steps=12,
            )
    assert pngs(out) == before


def test_another_forecast_at_the_same_steps_is_refused(carry_out):
    carry_out(caches={"x": make_cache(interval=2, warmup_steps=2, max_order=1)}, num_steps=12)
    with pytest.raises(UserError, match=r"cache\.plan\.forecast_weights is"):
        carry_out("--resume", caches={"x": make_cache(interval=2, warmup_steps=2, max_order=2)}, num_steps=12)


def test_other_contents_of_a_file_are_refused_and_another_place_is_not(carry_out, tmp_path, out):
    weights, moved = tmp_path / "weights", tmp_path / "moved"
    weights.write_bytes(b"one")
    moved.write_bytes(b"one")
    carry_out(read=weights, ckpt=str(weights))
    assert carry_out("--resume", read=moved, ckpt=str(moved))[1] is None, "the same contents"
    moved.write_bytes(b"two")
    with pytest.raises(UserError, match=r"contents\.transformer is"):
        carry_out("--resume", read=moved, ckpt=str(moved))


def test_what_cannot_change_a_sample_is_not_refused(carry_out, out):
    carry_out(prompts=FOUR[:2])
    before = pngs(out)
    _, pipeline = carry_out("--resume", prompts=FOUR)
    assert pipeline.prompts == FOUR[2:], "more prompts at the end"
    assert pngs(out).items() > before.items()
    assert carry_out("--resume", prompts=FOUR[:3])[1] is None, "fewer"
    assert carry_out("--resume", batch_size=3)[1] is None, "another batch size, in float32 on a CPU"
    with pytest.raises(UserError, match=r"prompt 1 is 'rocket, 3d render' there and 'x+…' here;") as refused:
        carry_out("--resume", prompts=[FOUR[0], "x" * 1000, *FOUR[2:]])
    assert len(str(refused.value)) < 400


def test_a_run_that_failed_before_its_first_sample_binds_nobody(carry_out, monkeypatch, out):
    monkeypatch.setattr(FakePipeline, "fails", True)
    with pytest.raises(RuntimeError, match="no memory"):
        carry_out(seed=1)
    monkeypatch.setattr(FakePipeline, "fails", False)
    assert carry_out(seed=2)[0]["settings"]["seed"] == 2


def test_a_folder_removed_meanwhile_is_named_and_resumed(carry_out, out, monkeypatch):
    monkeypatch.setattr(FakePipeline, "removed", out)
    with pytest.raises(UserError, match=r"000000\.png went missing or was damaged meanwhile; use --resume"):
        carry_out()
    monkeypatch.setattr(FakePipeline, "removed", None)
    record, pipeline = carry_out("--resume")
    assert (pipeline.prompts, record["num_samples"]) == (FOUR[:2], 4)


def test_a_run_that_fails_leaves_finished_images(carry_out, monkeypatch, out):
    carry_out()
    before, record = pngs(out), (out / "record.json").read_bytes()
    monkeypatch.setattr(FakePipeline, "fails", True)
    with pytest.raises(RuntimeError, match="no memory"):
        carry_out()
    assert pngs(out) == before
    assert (out / "record.json").read_bytes() == record


def test_another_method_in_the_same_folder_adds_to_the_record(carry_out, out):
    first, _ = carry_out(caches={"fora": CACHES["fora"]})
    record, _ = carry_out(caches={"uncached": CACHES["uncached"]})
    assert [row["label"] for row in record["rows"]] == ["uncached", "fora"]
    kept = {key: value for key, value in record["rows"][1].items() if key in first["rows"][0]}
    assert kept == first["rows"][0]
    assert record["rows"][1]["command_line"] == first["command_line"]
    assert record["rows"][1]["num_samples"] == 4


# ------------------------------------------------------------------------------------------------- what is not finite


def test_an_image_that_is_not_finite_is_named_and_the_others_are_kept(carry_out, out, monkeypatch, capsys):
    monkeypatch.setattr(FakePipeline, "spoilt", ("fora", 1))
    with pytest.raises(UserError, match=r"sample 1 of fora came out with NaN .*; lower --interval, or take another"):
        carry_out()
    made = [f"{label}/{i:06d}.png" for label in ("uncached", "taylorseer") for i in range(4)]
    assert sorted(pngs(out)) == sorted([*made, "fora/000000.png"]), "and no more of that cache"
    assert [row["label"] for row in json.loads((out / "record.json").read_text())["rows"]] == ["uncached", "taylorseer"]


def test_what_is_advised_where_nothing_was_finished_works_in_the_same_folder(carry_out, monkeypatch):
    flags = {"caches": {"uncached": CACHES["uncached"]}}
    monkeypatch.setattr(FakePipeline, "spoilt", ("uncached", 0))
    with pytest.raises(UserError, match=r"of that cache made; take --precision fp32 or a lower guidance weight$"):
        carry_out(precision="fp16", prompts=FOUR[:1], **flags)
    monkeypatch.setattr(FakePipeline, "spoilt", None)
    assert carry_out(prompts=FOUR[:1], **flags)[0]["num_samples"] == 1


def test_what_is_advised_beside_finished_images_works(carry_out, out, monkeypatch):
    """Other settings go elsewhere, and a calmer cache into the same folder."""
    monkeypatch.setattr(FakePipeline, "spoilt", ("fora", 1))
    advice = "others are kept; lower --interval, or take another --output-dir with --precision fp32 or a lower guidance"
    with pytest.raises(UserError, match=advice):
        carry_out(precision="fp16")
    monkeypatch.setattr(FakePipeline, "spoilt", None)
    with pytest.raises(UserError, match="precision is 'fp16' there and 'fp32' here"):
        carry_out()
    assert carry_out("--output-dir", str(out.with_name("other")))[0]["num_samples"] == 4
    calmer = make_cache("fora", interval=2)
    assert carry_out(precision="fp16", caches={calmer.label: calmer})[0]["num_samples"] == 4


def test_identical_images_are_called_so(carry_out, capsys):
    carry_out(caches={"uncached": CACHES["uncached"], "twin": make_cache("uncached")})
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("twin"))
    assert line.split()[-1] == "identical"


# --------------------------------------------------------------------------------------------------------- how it goes


def test_a_cache_alone_is_not_rehearsed(carry_out):
    _, pipeline = carry_out(caches={"fora": CACHES["fora"]})
    assert pipeline.sampled == [("fora", 0, 1), ("fora", 2, 3)]


def test_reports_hold_a_few_images_at_a_time(carry_out, monkeypatch):
    seen = []
    load = Folder.load
    monkeypatch.setattr(Folder, "load", lambda self, indices: seen.append(len(indices)) or load(self, indices))
    carry_out(prompts=["house"] * 40)
    assert max(seen) == SHOWN
