"""Published tables run again: rows, prompts, estimates, and tables of both figures; one small table the whole way."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cache_dic import UserError
from evaluation.reproduction import real, running
from evaluation.reproduction.protocols import COLUMNS, COSTS, DRAWBENCH, PROTOCOLS, Prompts, measure_of
from evaluation.reproduction.real import RealImages
from evaluation.reproduction.rows import UNCACHED, chosen, make_rows, make_run, published_rows, runs_of
from evaluation.reproduction.running import reference_of
from evaluation.reproduction.tables import Sheet, csv_text, extras, figure, latex, make_sheet, markdown, our_value
from evaluation.scoring.extractors import find_extractor
from evaluation.scoring.measures import NAMES
from seerkit.data.fashion_mnist import load_fashion_mnist

ROOT = Path(__file__).resolve().parents[2]


def row_of(protocol, method, model=None, **wanted):
    rows = make_rows(protocol, model or protocol.model)
    return next(
        row
        for row in rows
        if row.published["method"] == method and all(row.published.get(key) == value for key, value in wanted.items())
    )


class TestRows:
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_every_table_has_rows_and_every_column_a_figure_in_one_of_them(self, name):
        protocol = PROTOCOLS[name]
        for table in protocol.tables:
            rows = published_rows(table, name)
            assert rows[0]["method"] in ("uncached", "taylorseer", "teacache", "rfc")
            for key in table.columns:
                assert any(row.get(key) is not None for row in rows), (table.key, key)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_every_quality_column_has_a_measure_that_exists(self, name):
        protocol = PROTOCOLS[name]
        for table in protocol.tables:
            for key in set(table.columns) - {*COSTS}:
                measure = measure_of(key, table)
                assert measure in (*NAMES, "vbench")
        assert {*protocol.embedded_measures} <= {*NAMES}

    def test_settings_of_the_published_rows_become_ours(self):
        flux, hunyuan = PROTOCOLS["flux"], PROTOCOLS["hunyuan"]
        assert row_of(flux, "taylorseer", interval=6, max_order=2).counted.label == "taylorseer-N6-W3-O2"
        assert row_of(flux, "taylorseer", interval=6, max_order=1).counted.label == "taylorseer-N6-W3-O1"
        thirty = row_of(flux, "fewer steps", settings={"steps": 30}).counted
        assert (thirty.label, thirty.num_steps, thirty.cache.method) == ("fewer-steps-30", 30, "uncached")
        assert row_of(hunyuan, "toca").counted.label == "toca-recipe=hunyuan-N5"
        teacache = row_of(flux, "teacache", settings={"l": 0.8})
        assert "threshold=0.8" in teacache.counted.label

    def test_thresholds_of_one_model_are_not_taken_for_another(self):
        row = row_of(PROTOCOLS["flux"], "teacache", "flux-tiny", settings={"l": 0.8})
        assert "threshold=0.8" in row.counted.label
        assert "threshold=0.8" not in row.sampled.label

    def test_what_cannot_be_run_says_why(self):
        flux = PROTOCOLS["flux"]
        assert row_of(flux, "hyca").why == "hyca is not among the methods here"
        assert row_of(flux, "dbcache").why == "the settings of dbcache are not stated there"
        with pytest.raises(UserError, match="chipmunk is not among"):
            make_run({"method": "chipmunk"}, flux, flux.model)

    def test_rows_are_chosen_by_table_method_and_label(self):
        rows = make_rows(PROTOCOLS["hunyuan"], "hunyuan-video")
        assert {row.table.key for row in chosen(rows, ["lesa"])} == {"lesa"}
        assert {row.published["method"] for row in chosen(rows, ["fora"])} == {"fora"}
        assert {row.name for row in chosen(rows, ["taylorseer-*"])} == {"taylorseer-N5-W1-O1"}
        with pytest.raises(UserError, match="no row is called 'nosuch'; tables: hyca, paper, linca, lesa; rows: "):
            chosen(rows, ["nosuch"])

    def test_the_uncached_run_is_always_there_and_first_and_each_run_once(self):
        rows = make_rows(PROTOCOLS["hunyuan"], "hunyuan-video")
        runs = runs_of(chosen(rows, ["taylorseer"]), "sampled", 50)
        assert [*runs] == [UNCACHED, "taylorseer-N5-W1-O1"]


COUNTS = {
    UNCACHED: {"flops_T": 100.0},
    "taylorseer-N6-W3-O2": {"flops_T": 20.0},
}


def record_of(protocol, **more):
    return {
        "is_smoke": False,
        "model": protocol.model,
        "num_samples": protocol.num_samples,
        "counts": COUNTS,
        "runs": {},
        "not_scored": {},
        **more,
    }


class TestFigures:
    def test_of_costs_and_scores_beside_the_published_ones(self):
        flux = PROTOCOLS["flux"]
        row = row_of(flux, "taylorseer", interval=6, max_order=2)
        run = {
            "flops_T": 19.0,
            "latency": {"median_s": 2.5, "ratio": 4.0},
            "scores": {"clip-l14": {"value": 19.5, "low": 19.4, "high": 19.6}},
        }
        record = record_of(flux, runs={"taylorseer-N6-W3-O2": run})
        assert our_value("flops_T", row, row.table, record) == {"value": 19.0}
        assert our_value("speedup", row, row.table, record)["value"] == pytest.approx(100 / 19)
        assert our_value("latency_s", row, row.table, record) == {"value": 2.5}
        clip = figure("clip_score", row, row.table, record)
        assert (clip.heading, clip.published, clip.ours, clip.difference) == (
            "CLIP score (clip-l14)", "19.427", "19.500 ± 0.100", "+0.073",
        )  # fmt: skip
        assert figure("image_reward", row, row.table, record).ours == "–"

    def test_a_smoke_run_says_nothing_of_the_published_model_but_counts_it(self):
        flux = PROTOCOLS["flux"]
        row = row_of(flux, "taylorseer", "flux-tiny", interval=6, max_order=2)
        run = {"flops_T": 0.1, "latency": {"median_s": 2.5, "ratio": 4.0}, "scores": {"psnr": {"value": 30.0}}}
        record = record_of(flux, is_smoke=True, runs={row.sampled.label: run})
        assert our_value("flops_T", row, row.table, record) == {"value": 20.0}
        assert our_value("latency_s", row, row.table, record) == {"value": None}
        assert our_value("psnr", row, row.table, record) == {"value": None}

    def test_steps_that_are_decided_while_sampling_are_a_range(self):
        flux = PROTOCOLS["flux"]
        row = row_of(flux, "teacache", settings={"l": 0.8})
        counts = {**COUNTS, row.counted.label: {"flops_T": None, "flops_ratio_bounds": [1.0, 25.0]}}
        found = our_value("flops_T", row, row.table, record_of(flux, counts=counts))
        assert found == {"value": None, "text": "4.00 to 100.00"}

    def test_a_smoke_run_counts_the_steps_that_were_taken_instead(self):
        flux = PROTOCOLS["flux"]
        row = row_of(flux, "teacache", "flux-tiny", settings={"l": 0.8})
        count = {"flops_T": None, "flops_ratio_bounds": [1.0, 25.0], "full_steps_bounds": [2, 50]}
        run = {"full_steps_by_batch": [[*range(10)], [*range(18)]], "scores": {}}
        record = record_of(
            flux, is_smoke=True, counts={**COUNTS, row.counted.label: count}, runs={row.sampled.label: run}
        )
        found = our_value("flops_T", row, row.table, record)
        assert found["value"] == pytest.approx(4 + (14 - 2) / 48 * 96), "14 full steps of 50, between 4 and 100"
        assert found["text"] == "28.00 (14.0 full steps)"
        shown = figure("flops_T", row, row.table, record)
        assert (shown.ours, shown.difference, shown.values[1]) == ("28.00 (14.0 full steps)", "–", pytest.approx(28))
        assert our_value("speedup", row, row.table, record)["text"] == "3.57 (14.0 full steps)"


def test_a_smoke_run_shows_measures_that_passed_and_names_the_others():
    flux = PROTOCOLS["flux"]
    scores = {"psnr": {"value": 30.0}, "emoji-score": {"value": 54.0}}
    record = record_of(flux, model="flux-tiny", is_smoke=True, runs={"uncached": {"scores": scores}}, num_samples=8)
    shown, lines = extras(flux, record)
    assert [extra.name for extra in shown] == ["psnr"]
    assert any("emoji score" in line.lower() and line.startswith("Left out, ") for line in lines), lines


class TestRealImages:
    """The statistics that lie beside the code, in place of real images."""

    def test_they_are_of_the_network_that_is_at_hand(self):
        images = RealImages()
        mean, covariance = images.statistics("mu_squeezenet", "sigma_squeezenet")
        assert (mean.shape, covariance.shape) == ((512,), (512, 512))
        assert np.array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > -1e-3
        assert images.statistics("mu", "sigma") is None, "those are of another network"
        assert images.images == "the 10000 test images of Fashion-MNIST"
        with pytest.raises(UserError, match="holds statistics and no images"):
            images.read(0)

    def test_another_network_is_refused(self, monkeypatch):
        monkeypatch.setattr(real, "_reading_facts", lambda: {"network": "another"})
        with pytest.raises(UserError, match=r"made with another squeezenet; make it anew with `python -m evaluation"):
            RealImages()

    def test_of_the_distances_that_were_tried_it_needs_the_fewest_samples(self):
        tried = json.loads((ROOT / "results/metrics/fashion-mnist.json").read_text())["rows"]
        needed = {row["name"]: row["least_samples"] for row in tried if row["kind"] == "frechet"}
        assert min((name for name in needed if needed[name]), key=needed.get) == real.MEASURE

    def test_a_smoke_run_of_dit_is_compared_with_them(self):
        dit, flux = PROTOCOLS["dit"], PROTOCOLS["flux"]
        assert real.MEASURE in dit.embedded_measures
        for protocol, kind in ((dit, RealImages), (flux, type(None))):
            plan = SimpleNamespace(
                args=SimpleNamespace(reference=None), is_smoke=True, measures=[*protocol.embedded_measures]
            )
            assert isinstance(reference_of(plan), kind)

    @pytest.mark.slow
    def test_they_are_those_of_the_images(self):
        try:
            images, _ = load_fashion_mnist("test")
        except FileNotFoundError as error:
            pytest.skip(str(error))
        pixels = images[:1000].permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy()
        features = find_extractor(real.NETWORK).features(pixels)
        mean, covariance = RealImages().statistics("mu_squeezenet", "sigma_squeezenet")
        error = np.sqrt(np.diag(covariance) / len(features))  # 0 of channels that are never active
        assert (np.abs(features.mean(axis=0) - mean) <= 6 * error).all()
        assert np.trace(np.cov(features.T)) == pytest.approx(np.trace(covariance), rel=0.05)


class TestSheets:
    SHEET = Sheet(
        "A & B", ["run", "x, published", "ours", "note"], [["a_b", "1 %", "2 ± 1", "n|m"]], ["below"], [], "s"
    )

    def test_markdown_keeps_its_cells_apart(self):
        assert "| a_b | 1 % | 2 ± 1 | n\\|m |" in markdown(self.SHEET)

    def test_latex_escapes_and_leaves_the_notes_out(self):
        text = latex(self.SHEET)
        assert r"a\_b & 1 \% & 2 $\pm$ 1 \\" in text
        assert r"\caption{A \& B}" in text
        assert "n|m" not in text

    def test_csv_has_a_header(self):
        assert csv_text([self.SHEET]).splitlines()[0].split(",")[:3] == ["table", "row", "quantity"]


def test_a_column_of_every_key_that_is_published():
    assert {"flops_T", "fid", "vbench", "lpips"} <= COLUMNS.keys()


STUB = """#!/usr/bin/env bash
echo "table $* on ${OMP_NUM_THREADS:-all} threads"
echo "failing $1" >&2
[[ "$1" != "$FAILS" ]] || exit "$CODE"
"""


class TestAll:
    """scripts/reproduce_all.sh, on a checkout that only pretends to make tables."""

    @pytest.fixture
    def call(self, tmp_path, monkeypatch):
        (tmp_path / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "reproduce_all.sh", tmp_path / "scripts")
        for name, text in (("reproduce.sh", STUB), ("setup.sh", "")):
            (tmp_path / "scripts" / name).write_text(text)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

        def call(*arguments, **environment):
            argv = ["bash", str(tmp_path / "scripts" / "reproduce_all.sh"), *arguments]
            environment = {**os.environ, "FAILS": "none", **environment}
            return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)

        return call

    def test_tables_are_made_one_after_the_other(self, call):
        done = call("--num-samples", "3", "--prompt-file", "a b.txt")
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        assert sorted(line.split()[1] for line in lines) == sorted(PROTOCOLS)
        assert all(line.endswith("--num-samples 3 --prompt-file a b.txt on all threads") for line in lines)

    def test_smoke_runs_are_made_side_by_side_and_share_the_cores(self, call):
        done = call("--smoke", JOBS="2")
        assert done.returncode == 0
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        assert sorted(done.stdout.splitlines()) == sorted(
            f"table {name} --smoke on {threads} threads" for name in PROTOCOLS
        )
        assert "failing" not in done.stderr

    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_a_table_that_is_not_whole_is_told_and_the_others_follow(self, call, jobs):
        done = call("--smoke", JOBS=jobs, FAILS="wan", CODE="2")
        assert done.returncode == 2
        assert len(done.stdout.splitlines()) == len(PROTOCOLS)
        assert "failing wan" in done.stderr

    def test_a_defect_ends_them(self, call):
        done = call("--estimate", FAILS="wan", CODE="1")
        assert done.returncode == 1
        assert len(done.stdout.splitlines()) == 2, "wan is the second"

    def test_one_folder_for_all_is_refused(self, call):
        done = call("--smoke", "--output-dir", "x")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--output-dir is for one table" in done.stderr


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, ROOT / "eval" / "reproduce.py", *map(str, arguments)],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_one_table_the_whole_way(tmp_path):
    done = run("hidream", "--smoke", "--rows", "paper", "--num-samples", 2, "--output-dir", tmp_path / "out")
    assert (done.returncode, done.stderr[-500:] if done.returncode else "") == (0, "")
    assert "SMOKE RUN of hidream-tiny, 2 samples" in done.stdout
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [*record["runs"]] == ["uncached", "taylorseer-N4-W1-O2"]
    scores = record["runs"]["taylorseer-N4-W1-O2"]["scores"]
    assert scores["psnr"]["value"] > 20
    assert scores["psnr"]["num"] == 2
    lines = list(csv.DictReader((tmp_path / "out" / "tables.csv").read_text().splitlines()))
    assert {line["quantity"] for line in lines} == {"latency s", "latency ratio"}
    again = run("hidream", "--smoke", "--rows", "paper", "--num-samples", 2, "--output-dir", tmp_path / "out")
    assert again.returncode == 0
    assert json.loads((tmp_path / "out" / "record.json").read_text())["runs"] == record["runs"]


# -------------------------------------------------------------------------------------------------------------- faults

KILLS = int(os.environ.get("TAYLORSEER_KILLS", "3"))
DISTURBED = {
    "images": ("flux", "--smoke", "--rows", "fewer-steps-16", "teacache", "--num-samples", "8", "--batch-size", "4"),
    "videos": ("wan", "--smoke", "--rows", "teacache", "--num-samples", "2", "--batch-size", "1"),
    "classes": ("dit", "--smoke", "--rows", "fewer-steps-12", "--num-samples", "4", "--batch-size", "2"),
}
"""Small runs: one whose full steps are decided while sampling is among them."""
MADE = ("*.png", "*.mp4", "*.gif", "*.npz", "*.safetensors")


def files_in(out):
    """Of samples, and of what was read of them."""
    paths = [path for pattern in MADE for path in out.rglob(pattern)]
    return [path for path in paths if path.name != "grid.png" and not path.name.startswith(".")]


def made_in(out):
    """What they hold, by name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in files_in(out)}


def lasting(out):
    """What a record says of its runs but for times and memory."""
    record = json.loads((out / "record.json").read_text())
    of_a_run = ("latency", "peak_bytes", "conditions", "full_steps", "kept_bytes")
    runs = {
        label: {key: value for key, value in found.items() if key not in of_a_run}
        for label, found in record["runs"].items()
    }
    return record["counts"], runs, record["not_scored"], record["prompts"]


def workers_of(launcher):
    """The processes of reproduce.py itself."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"reproduce.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def run_and_kill(argv, out, draw, processes):
    """Start a run and kill it, or one of its processes, when it has made a little more; False if it came to its end before."""
    before, more = len(files_in(out)), draw.choice([0, 0, 1, 2])
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    started = subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "eval" / "reproduce.py"), *argv, "--output-dir", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while started.poll() is None and len(files_in(out)) <= before + more:
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 0.3))
    with contextlib.suppress(OSError):  # it ended meanwhile
        for pid in (
            [started.pid] if processes == 1 else draw.sample(workers_of(started.pid), draw.randint(1, processes))
        ):
            os.kill(pid, signal.SIGKILL)
    return started.wait() != 0


@pytest.mark.slow
@pytest.mark.timeout(3600)  # as many starts of one or two processes, on a busy machine
@pytest.mark.parametrize(("kind", "processes"), [("images", 1), ("images", 2), ("videos", 1), ("classes", 1)])
def test_a_run_that_is_killed_ends_with_the_same_table(kind, processes, run_script, tmp_path):
    argv, draw, kills = DISTURBED[kind], random.Random(processes), 0
    done = run_script("eval/reproduce.py", *argv, "--output-dir", tmp_path / "undisturbed")
    assert done.returncode == 0, done.stderr[-2000:]
    made, out = made_in(tmp_path / "undisturbed"), tmp_path / "killed"
    remade = sorted(name for name in made if "/state/" not in name)
    while kills < KILLS:
        if run_and_kill(argv, out, draw, processes):
            kills += 1
        else:  # it came to its end: some of what it made is taken away again
            assert made_in(out) == made
            for name in draw.sample(remade, len(remade) // 2):
                (out / name).unlink()
    done = run_script("eval/reproduce.py", *argv, "--output-dir", out, processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert made_in(out) == made
    assert lasting(out) == lasting(tmp_path / "undisturbed"), "to the last bit"
    assert (out / "tables.csv").read_text() == (tmp_path / "undisturbed" / "tables.csv").read_text()
    assert not list(out.rglob("*.partial*"))


@pytest.mark.slow
def test_a_full_disk_is_named_and_costs_nothing_that_was_made(tmp_path, load_command, monkeypatch, capsys):
    from seerkit.command.cli import run_command
    from seerkit.io import files

    main, make = load_command("eval/reproduce.py").main, files.tempfile.mkstemp
    argv = ["hidream", "--smoke", "--rows", "paper", "--num-samples", "4", "--batch-size", "2"]
    out, places, kept = tmp_path / "out", ["uncached/.000002", "scores/lite0", "out/.tables"], {}

    def times(names):
        return {name: (out / name).stat().st_mtime_ns for name in names if "steps-50/state" not in name}

    for place in (*places, None):

        def full(place=place, **asked):
            if place and place in f"{asked['dir']}/{asked['prefix']}".replace("-N1-W1", ""):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{asked['dir']}/{asked['prefix']}")
            return make(**asked)

        monkeypatch.setattr(files.tempfile, "mkstemp", full)
        with pytest.raises(SystemExit) as ended:
            run_command(main, [*argv, "--output-dir", str(out)])
        said = capsys.readouterr().err
        assert ended.value.code == (2 if place else 0), said
        if place:
            assert "No space left on device" in said
            assert place.split("/")[1] in said
            assert "free some space, or write elsewhere; what was finished is kept" in said
        assert times(kept) == kept, "neither lost nor made again"
        kept = times(made_in(out))
        assert not list(out.rglob("*.partial*"))
    assert (out / "tables.md").is_file()


@pytest.mark.slow
def test_prompts_are_asked_for_and_their_digest_is_checked(tmp_path):
    done = run("hidream", "--rows", "paper", "--output-dir", tmp_path / "out")
    assert done.returncode == 2
    assert "the prompts of DrawBench have to be given by --prompt-file" in done.stderr
    (tmp_path / "prompts.txt").write_text("a fox\n")
    done = run("hidream", "--prompt-file", tmp_path / "prompts.txt", "--output-dir", tmp_path / "out")
    assert done.returncode == 2
    digest = hashlib.sha256(b"a fox\n").hexdigest()[:8]
    assert f"has 1 different prompts and SHA-256 {digest}…; DrawBench has 200" in done.stderr
    assert all(known[:8] in done.stderr for known in DRAWBENCH.digests)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["flux", "--smoke", "--num-steps", "20"], "--num-steps 20 is not taken here, the tables are of 50"),
        (["flux", "--width", "512"], "--width 512 is not taken here, the tables are of 1024"),
        (["wan", "--num-frames", "33"], "--num-frames 33 is not taken here, the tables are of 81"),
        (["hunyuan", "--num-frames", "33"], "--num-frames 33 is not taken here, the tables are of 65"),
        (["dit", "--image-size", "512"], "--image-size 512 is not taken here, the tables are of 256"),
    ],
)
def test_samples_of_other_sizes_are_not_set_beside_the_published_ones(given, message, load_command):
    """They were counted at the published size all the same, and steps were those of the table whatever was asked for."""
    with pytest.raises(UserError, match=re.escape(message)):
        load_command("eval/reproduce.py").main([*given, "--dry-run"])


@pytest.mark.parametrize(
    ("flag", "place", "message"),
    [
        ("--reference", "typo.npz", "is no batch of images"),
        ("--output-dir", "file", "cannot be written"),
        ("--results", "file", "cannot be written"),
    ],
)
def test_what_would_end_a_run_is_told_before_it_begins(flag, place, message, load_command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    command = load_command("eval/reproduce.py")
    monkeypatch.setattr(running, "count", lambda *_: pytest.fail("it has begun"))
    given = {"--output-dir": tmp_path / "out", flag: tmp_path / place}
    with pytest.raises(UserError, match=message):
        command.main(["dit", "--smoke", "--rows", "uncached", *(str(part) for pair in given.items() for part in pair)])


def test_another_protocol_is_named_below_the_tables():
    flux = PROTOCOLS["flux"]
    conditions = {"device": "X", "dtype": "bf16", "versions": {"torch": "2.15.0"}, "date": "2026-11-29"}
    made = {"conditions": conditions, "counts_conditions": conditions, "prompts": {"note": None}}
    rows = [row_of(flux, "taylorseer")]
    notes = [
        make_sheet(flux.tables[0], rows, record_of(flux, **made, settings={**flux.flags, **changed}), flux).below
        for changed in ({}, {"guidance_scale": 5.0})
    ]
    assert not any("another protocol" in line for line in notes[0])
    assert "Sampled by another protocol: guidance_scale 5.0 instead of 3.5." in notes[1]


def test_the_lists_of_prompts_are_known_by_count_and_digest():
    assert isinstance(DRAWBENCH, Prompts)
    assert DRAWBENCH.count == 200
    assert next(iter(DRAWBENCH.digests)).startswith("3bf3fce1")
