"""Features watched on an uncached run, what is made of them, and the figures."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from cache_dic.forecast import Taylor
from cache_dic.schedule import taylorseer
from evaluation.features import Place, extent, forecast_error, forecasts, plane, similarity, watched_places
from evaluation.figures.features import FEATURES, draw_features, forecast_path
from evaluation.figures.published import points
from evaluation.figures.samples import chosen_rows, draw_samples
from seerkit.command.cli import run_command
from seerkit.io.images import image_path
from seerkit.io.media import save_png
from seerkit.io.records import misfit


@pytest.fixture(scope="module")
def figures(load_command):
    return load_command("eval/figures.py")


def gram(features: np.ndarray) -> np.ndarray:
    return features @ features.T


def test_similarity_is_the_mean_cosine_by_distance():
    angles = 0.1 * np.arange(6)
    turning = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 7)[:, None]
    assert similarity(gram(turning), 3) == pytest.approx([math.cos(0.1 * d) for d in (1, 2, 3)], abs=1e-12)


def test_linear_features_are_forecast_exactly_by_order_1_and_with_a_known_error_by_reuse():
    steps, start, move = np.arange(20), np.array([3.0, 0, 4]), np.array([0, 1.0, 0])
    linear = start + steps[:, None] * move
    made = forecasts(20, 4, 1, 3)
    assert list(made) == [s for s in range(20) if s not in taylorseer(20, interval=4, warmup_steps=3)]
    assert forecast_error(gram(linear), made) < 1e-7
    lags = [step - max(f for f in (0, 1, 2, 6, 10, 14, 18) if f < step) for step in made]
    expected = np.mean([lag / math.hypot(5, step) for lag, step in zip(lags, made, strict=True)])
    assert forecast_error(gram(linear), forecasts(20, 4, 0, 3)) == pytest.approx(expected, rel=1e-9)


def test_paths_keep_distances_and_shares_tell_what_the_plane_holds():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 2)))[0].T  # two directions in 50 coordinates
    moves = [rng.normal(size=(7, 2)) * (5, 1) for _ in range(3)]
    paths, shares = plane([100 * rng.normal(size=50) + move @ basis for move in moves])
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > shares[1]
    for path, move in zip(paths, moves, strict=True):
        assert np.linalg.norm(path[3] - path[0]) == pytest.approx(np.linalg.norm(move[3] - move[0]))
        assert path.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert (paths[0][0] >= 0).all()


def test_sites_of_the_first_middle_and_last_block_of_each_kind():
    found = watched_places([("attn", "mlp")] * 2 + [("single",)] * 5)
    assert found == [
        Place(0, "attn", 0, "first", False), Place(1, "mlp", 0, "first", False),
        Place(2, "attn", 1, "last", True), Place(3, "mlp", 1, "last", True),
        Place(4, "single", 2, "first", False), Place(6, "single", 4, "middle", True), Place(8, "single", 6, "last", False),
    ]  # fmt: skip
    assert watched_places([("all",)]) == [Place(0, "all", 0, "first", True)]


def test_what_is_held_stays_below_the_limit():
    kept = extent(10**6, 50, 9, 12, 2**20)
    assert kept.coordinates == 2**20 // (50 * (4 * 21 + 16))
    assert kept.held_bytes <= 2**20
    assert extent(1000, 50, 9, 12, 2**30).coordinates == 1000
    with pytest.raises(ValueError, match=r"more than 10$"):
        extent(1000, 50, 9, 12, 10)


def test_forecast_paths_follow_straight_lines():
    path = [(float(step), 2.0 * step) for step in range(12)]
    full = taylorseer(12, interval=3, warmup_steps=3)
    expected = [place for step, place in enumerate(path) if step not in full]
    forecast = forecast_path(path, full, Taylor(max_order=2, warmup_steps=3))
    assert forecast == [pytest.approx(place) for place in expected]


def test_published_speed_ups_follow_from_the_same_source_where_they_are_not_printed():
    rows = [
        {"method": "uncached", "source": "a", "flops_T": 10, "fid": 2.0, "speedup": 1.0},
        {"method": "fora", "source": "a", "interval": 3, "flops_T": 4, "speedup": None, "fid": 3.0},
        {"method": "fora", "source": "b", "flops_T": 4, "speedup": None, "fid": 3.0},
        {"method": "toca", "source": "b", "speedup": 2.0},
    ]
    found = points({"flops": rows, "latency": []})
    assert list(found) == ["a"], "without an uncached row, or a figure of merit, there is no point"
    assert [(p.method, p.costs, p.merits) for p in found["a"]] == [
        ("uncached", {"speedup": 1.0}, {"fid": 2.0}), ("fora", {"speedup": 2.5}, {"fid": 3.0})
    ]  # fmt: skip


def row(label: str, ratio: float, **more) -> dict:
    method = label.partition("-")[0]
    psnr = None if method == "uncached" else {"mean_db": 30.0, "num_images": 2, "num_identical": 0}
    return {"label": label, "method": method, "flops_ratio": ratio, "psnr": psnr, **more}


def test_of_every_method_the_row_nearest_to_the_ratio_is_shown():
    rows = [row("fora-6", 6.5), row("uncached", 1), row("fora-4", 4), row("toca-3", 2), row("toca-2", 1.5)]
    assert [one["label"] for one in chosen_rows(rows, 5)] == ["uncached", "toca-3", "fora-4"]


@pytest.mark.slow
def test_samples_are_drawn_and_a_missing_one_is_named(tmp_path):
    record = {
        "settings": {"model": "flux-tiny", "num_steps": 4, "prompts": ["a $cat$", "<b>"]}, "num_samples": 2,
        "rows": [row("uncached", 1), row("fora-4", 4), {"label": "bad", "error": "no"}],
    }  # fmt: skip
    for label in ("uncached", "fora-4"):
        for index in range(2):
            save_png(image_path(tmp_path / label, index), np.full((8, 8, 3), 40 * index, np.uint8))
    png, svg = draw_samples(record, tmp_path, tmp_path / "out")
    with Image.open(png) as image:
        assert image.width > 200
    assert "a $cat$" in svg.read_text()
    assert "&lt;b&gt;" in svg.read_text()
    image_path(tmp_path / "fora-4", 1).unlink()
    with pytest.raises(ValueError, match=r"fora-4/000001.png is missing or damaged"):
        draw_samples(record, tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_a_run_is_watched_and_its_figures_are_the_same_to_the_byte(figures, tmp_path, capsys):
    flags = ["--num-steps", "8", "--samples", "2", "--device", "cpu", "--output-dir", str(tmp_path)]
    figures.main(["measure", "--model", "flux-tiny", *flags])
    record = json.loads((tmp_path / "features-flux-tiny.json").read_text())
    assert misfit(record, FEATURES) is None
    assert record["coordinates"] == {"of": 64 * 256, "measured": 64 * 256}
    assert [site["name"] for site in record["sites"]] == ["img_attn", "img_mlp"] * 3 + ["single"] * 3
    for site in record["sites"]:
        alike, errors = site["similarity"]["mean"], site["forecast_error"]["by_order"]
        assert 1 > alike[0] > alike[-1] > 0, "the further apart, the less alike"
        assert errors["0"]["mean"][0] > 0
        assert len(errors) == 5
    figures.main(
        ["measure", "--model", "flux-tiny", *flags[:-2], "--held-mib", "1", "--output-dir", str(tmp_path / "b")]
    )
    fewer = json.loads((tmp_path / "b" / "features-flux-tiny.json").read_text())
    assert fewer["coordinates"]["measured"] < 64 * 256
    assert fewer["held_bytes"] <= 2**20
    whole, part = (made["sites"][0]["similarity"]["mean"][0] for made in (record, fewer))
    assert part == pytest.approx(whole, abs=0.02), "coordinates are drawn, not chosen"
    capsys.readouterr()
    figures.main(["features", str(tmp_path / "features-flux-tiny.json"), "--output-dir", str(tmp_path)])
    made = capsys.readouterr().out.split()
    assert [name.rpartition("/")[2] for name in made] == [
        f"{name}-flux-tiny.{kind}" for name in ("features", "trajectories") for kind in ("png", "svg")
    ]
    before = (tmp_path / "features-flux-tiny.svg").read_bytes()
    draw_features(record, tmp_path)
    assert (tmp_path / "features-flux-tiny.svg").read_bytes() == before
    assert len(before) < 150_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["features", "RECORD"], "is not a record of `eval/figures.py measure`"),
        (["features"], "features needs a RECORD to be drawn from"),
        (["measure", "RECORD"], "measure takes no record"),
        (["compare", "RECORD", "--samples", "3"], "--samples has no effect with compare"),
        (["compare", "RECORD", "--height", "3"], "unrecognized arguments: --height 3"),
        (["measure", "--model", "flux-dev"], "flux-dev needs --prompt-file FILE"),
    ],
)
def test_mistakes_are_one_line(figures, tmp_path, capsys, argv, message):
    path = tmp_path / "record.json"
    path.write_text('{"command": "other"}')
    with pytest.raises(SystemExit) as stop:
        run_command(figures.main, [str(path) if text == "RECORD" else text for text in argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
