"""Write the tables of the documents from the records under results/, between their markers.

Without --readme: into every document of the repository that has a marker. No figure is typed by hand.
"""

import argparse
import functools
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.beyond import document as beyond
from evaluation.cells import (
    CHANGES,
    COSTS_HEADER,
    FLICKER_MEANING,
    FRONTS_HEADER,
    INTERVALS,
    LITE0,
    PARTIAL_HEADER,
    PARTIAL_MEANING,
    TRACKING_HEADER,
    TRACKING_MEANING,
    change_cell,
    computed_cell,
    cost_cells,
    cost_errors,
    front_cells,
    partial_cells,
    plus_minus,
    tracking_cells,
)
from evaluation.forms import (
    BENCHMARK,
    BLOCK_FIELDS,
    BUSY_MACHINE,
    COMPARISON,
    COUNTS,
    FRONTS,
    GAINS,
    KEPT,
    METHOD_COSTS,
    NEAREST,
    OP_COUNTS,
    PARTIAL_STEPS,
    SAMPLES,
    SCORES,
    TRACKING,
    TRAINING,
    VALIDATION,
    VIDEO_COUNTS,
)  # fmt: skip
from evaluation.front_table import hooks, transformers
from evaluation.gpu import report as gpu
from evaluation.method_table import methods, presets, recipes
from evaluation.metrics import mean_interval
from evaluation.paper import published, published_flops, published_latency
from evaluation.validation.candidates import CANDIDATES
from evaluation.validation.cells import HEADER as VERDICTS_HEADER
from evaluation.validation.cells import MEANING as VERDICTS_MEANING
from evaluation.validation.cells import NOISE_HEADER, NOISE_MEANING, noise_cells, verdict_cells
from evaluation.validation.rules import command as validation_command
from evaluation.validation.rules import record_path, screened
from hidream import HiDreamConfig
from hidream.counts import hidream_operations
from seerkit.command.cli import Parser, run_command
from seerkit.environment import OPENMPS_OWN_SPINS, SPINS
from seerkit.io.files import read_text, write_text
from seerkit.io.records import Form, read_record
from seerkit.io.tables import apart_from, counted, markdown_table, number, psnr_cell
from seerkit.training.flags import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "[!.]*/README.md", "[!.]*/weights/README.md")
    for path in sorted(ROOT.glob(pattern))
]
EXAMPLES = """
python eval/tables.py
python eval/tables.py --check
python eval/tables.py --print dit-flops
"""
BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
BEGINS, ENDS = re.compile(r"<!-- table:[^>]*-->"), re.compile(r"<!-- /table -->")
MARKERS = "a table begins with <!-- table:NAME --> on a line of its own and ends with <!-- /table -->"
MIB, GIB = 2**20, 2**30
LEAST_PSNR_DB = 30  # of a run that the overview shows


@dataclass(frozen=True)
class Backbone:
    """What the overview says about a backbone, besides its figures.

    embedded: the model whose samples are recorded in results/NAME/EMBEDDED.json. published: one whose counts are in
    results/NAME/flops.json.
    """

    title: str
    folder: str
    embedded: str
    published: str


BACKBONES = {
    "flux": Backbone("FLUX.1", "TaylorSeer-FLUX", "flux-tiny", "flux-dev"),
    "hidream": Backbone("HiDream-I1", "TaylorSeer-HiDream", "hidream-tiny", "hidream-full"),
    "hunyuan": Backbone("HunyuanVideo", "TaylorSeer-HunyuanVideo", "hunyuan-tiny", "hunyuan-video"),
    "wan": Backbone("Wan2.1", "TaylorSeer-Wan2.1", "wan-tiny", "wan-t2v-1.3B"),
    "dit": Backbone("DiT", "TaylorSeer-DiT", "fashion-mnist", "DiT-XL/2"),
}
"""By the folder of their records."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("data").add_argument(
        "--results", type=Path, metavar="DIR", help="folder of the records (default: results/ of the repository)"
    )
    output = parser.section("output")
    output.add_argument(
        "--readme",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="Markdown files with markers (default: all of the repository's)",
    )
    action = output.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if a table is not that of the records"
    )
    action.add_argument(
        "--print",
        choices=tuple(TABLES),
        dest="shown",
        metavar="TABLE",
        help=f"print one table and change nothing: {', '.join(TABLES)}",
    )
    args = parser.parse_args(argv)
    if args.shown and args.readme:
        parser.error("--readme has no effect with --print")
    args.readme = args.readme or marked_documents()
    args.results = args.results or ROOT / "results"
    return args


def read(path: Path, form: Form, command: str) -> dict[str, Any]:
    """A record; UserError naming the command that makes it if there is none, or one without what the table needs."""
    if not path.exists():
        raise UserError(f"the record {path} is not there; make it with `{command}`")
    return read_record(path, form, command)


def samples_record(results: Path, name: str) -> dict[str, Any]:
    """Samples of the embedded model of a backbone, as its main job makes them."""
    embedded = BACKBONES[name].embedded
    command = f"bash scripts/run_{name}.sh, then copy record.json"
    if name == "dit":
        command = f"bash scripts/run_dit.sh --compare --output-dir results/dit --name {embedded}"
    return read(results / name / f"{embedded}.json", SAMPLES, command)


def counts_record(results: Path, name: str, record: str = "flops") -> dict[str, Any]:
    """Operations of a backbone's published models."""
    return read(results / name / f"{record}.json", COUNTS[name], f"bash scripts/reproduce_{name}_flops.sh")


def hidream_config(path: Path, config: dict[str, Any]) -> HiDreamConfig:
    """The configuration of a record; UserError if it is none."""
    try:
        return HiDreamConfig(**config)
    except (TypeError, UserError) as error:
        raise UserError(f"{path} holds no configuration of HiDream ({error}); make the record anew") from error


def made_with(*facts: str | None) -> str:
    """The line of conditions under a table."""
    return "*" + "; ".join(fact for fact in facts if fact) + "*"


def run_conditions(conditions: dict[str, Any]) -> str:
    """Device, precision, version and date of a record."""
    threads = f", {conditions['threads']} threads" if conditions.get("threads") else ""
    version, date = conditions["versions"]["torch"], conditions["date"][:10]
    return f"{conditions['device']}{threads}, {conditions['dtype']}, torch {version}, {date}"


def rows_conditions(record: dict[str, Any]) -> list[str]:
    """Those that rows were measured under, some of them perhaps in earlier runs."""
    return list(dict.fromkeys(run_conditions(row.get("conditions", record["conditions"])) for row in record["rows"]))


def percent(ours: float, theirs: float, digits: int = 2) -> str:
    return f"{100 * (ours / theirs - 1):+.{digits}f} %"


def overview(results: Path) -> str:
    """A row per backbone: the fastest TaylorSeer run of its embedded model that keeps LEAST_PSNR_DB."""
    samples = {name: samples_record(results, name) for name in BACKBONES}
    counts = {name: counts_record(results, name) for name in BACKBONES}
    header = [
        "backbone", "embedded model", f"fastest run of at least {LEAST_PSNR_DB} dB", "full steps", "FLOPs ratio",
        "latency ratio", "PSNR dB", "PSNR dB of FORA", "FLOPs ratio at published size",
    ]  # fmt: skip
    rows = [overview_row(BACKBONES[name], samples[name], counts[name]) for name in BACKBONES]
    measured = dict.fromkeys(line for record in samples.values() for line in rows_conditions(record))
    conditions = [record["rows"][0]["conditions"] for record in counts.values()]
    counted = dict.fromkeys(f"torch {c['versions']['torch']}, {c['date'][:10]}" for c in conditions)
    return "\n\n".join(
        [
            markdown_table(header, rows, left=(0, 1, 2)),
            made_with(
                "trained weights, PSNR to the uncached samples of the same noise, FORA with the same full steps",
                *measured,
                f"published sizes counted on the meta device, {' and '.join(counted)}",
            ),
        ]
    )


def overview_row(backbone: Backbone, samples: dict[str, Any], counts: dict[str, Any]) -> list[str]:
    """Cells of a backbone; dashes where no run is good enough, and where nothing was measured or counted."""

    def psnr(row: dict[str, Any]) -> float:
        return (row.get("psnr") or {}).get("mean_db") or 0.0

    def latency(row: dict[str, Any]) -> float | None:
        return (row.get("latency") or {}).get("ratio")

    rows = samples["rows"]
    good = [
        row
        for row in rows
        if row["label"].startswith("taylorseer-") and psnr(row) >= LEAST_PSNR_DB and latency(row) is not None
    ]
    cells = [
        f"[{backbone.title}]({backbone.folder}/README.md)",
        f"{samples['settings']['model']}, {samples['num_samples']} samples",
    ]
    if not good:
        return [*cells, *["–"] * 7]
    best = max(good, key=latency)
    rivals = (row for row in rows if row["label"].startswith("fora-") and row["full_steps"] == best["full_steps"])
    wanted = best["label"], backbone.published
    counted = next((row for row in counts["rows"] if (row["label"], row["settings"]["model"]) == wanted), None)
    return [
        *cells,
        best["label"],
        f"{len(best['full_steps'])}/{best['num_steps']}",
        number(best["flops_ratio"], 2, "x"),
        number(latency(best), 2, "x"),
        psnr_cell(best["psnr"]),
        psnr_cell(next(rivals, {}).get("psnr")),
        "–" if counted is None else f"{number(counted['flops_ratio'], 2, 'x')} ({backbone.published})",
    ]


def dit_flops(results: Path) -> str:
    """Counts of DiT-XL/2."""

    def made(settings: dict[str, Any]) -> str:
        side = 8 * settings["config"]["input_size"]
        return (
            f"{settings['model']} at {side}×{side}, {settings['num_steps']} steps, "
            f"{settings['rows']} rows per sample (guidance)"
        )

    return flops_table(results, "dit", made, "were read in notes on those works")


def flux_flops(results: Path) -> str:
    """Counts of FLUX.1-dev, with what the engines keep."""

    def made(settings: dict[str, Any]) -> str:
        size = f"{settings['width']}×{settings['height']} with {settings['text_tokens']} text tokens"
        return f"{settings['model']} at {size}, {settings['num_steps']} steps, features in {settings['precision']}"

    return flops_table(results, "flux", made, "were read in those works or quoted from others, as noted", kept=True)


def hunyuan_flops(results: Path) -> str:
    """Counts of HunyuanVideo at the size of the paper's table."""
    return flops_table(results, "hunyuan", video_made, "were quoted from others, as noted", kept=True)


def wan_flops(results: Path) -> str:
    """Counts of Wan2.1, beside published figures for 1.3B in 480p; those for 14B in 720p stand alone."""
    small = flops_table(results, "wan", video_made, "were read in that work", kept=True, without_attention=True)
    large = flops_table(results, "wan", video_made, kept=True, without_attention=True, record="flops-14b-720p")
    return f"{small}\n\n{large}"


def hidream_flops(results: Path) -> str:
    """Counts of HiDream-I1, for which no counts are published, and what the engines keep."""
    path = results / "hidream" / "flops.json"
    rows = counts_record(results, "hidream")["rows"]

    def line(row: dict[str, Any]) -> list[str]:
        folded, layerwise = (row["kept_bytes"][engine] for engine in KEPT)
        num_steps = row["settings"]["num_steps"]
        return [
            row["settings"]["model"],
            row["method"] if row["method"] == "uncached" else row["label"],
            f"{len(row['full_steps'])}/{num_steps}",
            number(row["flops_T"], 2),
            number(row["flops_ratio"], 2, "x"),
            *(number(size / GIB, 3) for size in (folded, layerwise)),
            number(layerwise / folded if folded else None, 1, "x"),
        ]

    header = [
        "model", "run", "full steps", "TFLOPs", "FLOPs ratio", "folded keeps GiB", "layerwise keeps GiB",
        "layerwise to folded",
    ]  # fmt: skip
    first = rows[0]
    s, full, made = first["settings"], first["flops_T_full_step"], first["conditions"]
    config = hidream_config(path, s["config"])
    dropped = hidream_operations(config, s["rows"], s["tokens"], s["text_tokens"]).dropped / 1e12
    attention = (first["flops_T"] - first["flops_T_without_attention"]) / len(first["full_steps"])
    return "\n\n".join(
        [
            markdown_table(header, map(line, rows)),
            f"A full step of {s['model']} takes {full:.2f} TFLOPs, {attention:.2f} of them attention's products; a forecast "
            f"step, without the engine's work, {first['flops_T_forecast_step']:.4f}. The official code takes {dropped:.2f} "
            f"({100 * dropped / full:.1f} %) more in a full step: it also computes queries, rows of attention, output "
            f"projection and feed-forward layer of the {s['text_tokens']} Llama tokens that it appends to each block, and "
            "drops them.",
            made_with(
                f"{s['width']}×{s['height']} with {s['text_tokens']} text tokens of T5 and as many of Llama, guidance in "
                f"{s['rows']} rows where there is any, features in {s['precision']}",
                "counted on the meta device, 2 operations per multiply-add, attention and folding included, experts by the "
                f"tokens routed to them ({config.num_activated_experts} of {config.num_routed_experts}), modulation from the "
                "table of a run, text encoders and VAE left out; no counts are published",
                f"torch {made['versions']['torch']}, {made['date'][:10]}",
            ),
        ]
    )


def video_made(settings: dict[str, Any]) -> str:
    rows = f", {settings['rows']} rows per sample (guidance)" if settings["rows"] > 1 else ""
    text = f" and {settings['text_tokens']} of text" if settings.get("text_tokens") else ""
    return (
        f"{settings['model']} at {video_size(settings)}, {settings['tokens']} tokens{text}, {settings['num_steps']} steps"
        f"{rows}, features in {settings['precision']}"
    )


def video_size(settings: dict[str, Any]) -> str:
    return f"{settings['width']}×{settings['height']}, {settings['frames']} frames"


def flops_table(
    results: Path,
    name: str,
    made: Callable[[dict[str, Any]], str],
    provenance: str | None = None,
    *,
    kept: bool = False,
    without_attention: bool = False,
    record: str = "flops",
) -> str:
    """Published FLOPs of a backbone, the published counter's formula evaluated here, and our count.

    made: how the model was counted, from a row's settings. provenance: of the published figures; None where there are none
    for these settings. kept: adds columns. without_attention: the published counter leaves attention's products out, so that
    our count without them is what compares. record: results/NAME/RECORD.json.
    """
    path = results / name / f"{record}.json"
    rows = counts_record(results, name, record)["rows"]
    facts = published(name) if provenance else {"flops": []}
    base = published_flops(facts, "uncached")

    def figure(row: dict[str, Any]) -> tuple[float, str]:
        """TFLOPs of a published row and how it reads; derived from its speed-up where no count is printed."""
        if row["flops_T"] is not None:
            return row["flops_T"], f"{row['flops_T']:.2f}"
        derived = base["flops_T"] / row["speedup"]
        return derived, f"{derived:.2f} ({base['flops_T']:.2f} / {row['speedup']:.2f})"

    def line(row: dict[str, Any], match: dict[str, Any] | None, *, uncached: bool = False) -> list[str]:
        held = dict.fromkeys(KEPT, 0) if uncached else row["kept_bytes"]
        sizes = [number(held[engine] / GIB if engine in held else None, 3) for engine in KEPT] if kept else []
        source = match["source"] if match else "–"
        shown = flops_row(row, figure(match) if match else None, uncached=uncached, without_attention=without_attention)
        return [*shown, *sizes, source]

    ours = [row for row in rows if row["method"] != "uncached"]
    if not ours:
        raise UserError(f"{path} has no run with a cache; make it anew with `bash scripts/reproduce_{name}_flops.sh`")
    matches = [published_flops(facts, row["method"], row["schedule"].get("interval")) for row in ours]
    header = [
        "run",
        "full steps",
        "published TFLOPs",
        "its counter, evaluated here",
        "our count",
        *(["ours without attention"] if without_attention else []),
        "ours to published" + (", both without" if without_attention else ""),
        "FLOPs ratio",
        *([f"{engine} keeps GiB" for engine in KEPT] if kept else []),
        "published in",
    ]
    lines = [line(ours[0], base, uncached=True), *map(line, ours, matches)]
    doubts = [
        f"- {row['label']}, {figure(match)[1]} in {match['source']}: {match['discrepancy']}"
        for row, match in zip(ours, matches, strict=True)
        if match and "discrepancy" in match
    ]
    in_part = [row for row in ours if row.get("partial_steps") is not None]
    whole = [(row, match) for row, match in zip(ours, matches, strict=True) if row not in in_part]
    agreed = (row for row, match in whole if match and "discrepancy" not in match)
    with_goal = (row for row in ours if row.get("kept_goal"))
    first = next(itertools.chain(agreed, with_goal), ours[0])
    terms = "\n".join(f"- {t['term']}: {t['flops_T']:+.4f}" for t in first["published_convention"]["difference"])
    firsts = {row["method"]: row for row in reversed(in_part) if row["published_convention"]}
    in_part_terms = [
        f"- {row['label']}: "
        + "; ".join(f"{t['flops_T']:+.2f} {t['term']}" for t in row["published_convention"]["difference"])
        for row in in_part
        if firsts.get(row["method"]) is row
    ]
    return "\n\n".join(
        [
            markdown_table(header, lines),
            *(["Published figures that do not follow from their own counter:", "\n".join(doubts)] if doubts else []),
            f"From the published counter ({first['published_convention']['flops_T']:.4f} TFLOPs) to our count "
            f"({first['flops_T']:.4f}) of {first['label']}, in TFLOPs of the run:",
            terms,
            *(
                [
                    "The same of methods that compute part of some steps, of the first run of each:",
                    "\n".join(in_part_terms),
                ]
                if in_part_terms
                else []
            ),
            made_with(
                made(first["settings"]),
                "counted on the meta device, 2 operations per multiply-add, folding included",
                f"torch {first['conditions']['versions']['torch']}, {first['conditions']['date'][:10]}",
                f"published figures {provenance} (results/paper/{name}.json)" if provenance else None,
            ),
        ]
    )


def flops_row(
    row: dict[str, Any], figure: tuple[float, str] | None, *, uncached: bool, without_attention: bool = False
) -> list[str]:
    """The run of a row, or the uncached one that it is compared with, beside the published figure."""
    convention, num_steps = row["published_convention"], row["settings"]["num_steps"]
    name = "flops_T_uncached" if uncached else "flops_T"
    count, comparable = row[name], row[f"{name}_without_attention" if without_attention else name]
    return [
        "uncached" if uncached else row["label"],
        f"{num_steps if uncached else len(row['full_steps'])}/{num_steps}",
        figure[1] if figure else "not published",
        number(convention["flops_T_uncached" if uncached else "flops_T"] if convention else None, 2),
        number(count, 2),
        *([number(comparable, 2)] if without_attention else []),
        percent(comparable, figure[0]) if figure else "–",
        number(1.0 if uncached else row["flops_ratio"], 2, "x"),
    ]


def video_memory(results: Path) -> str:
    """What the engines keep of videos at published sizes, against the goals of the records."""
    rows = []
    for name in ("hunyuan", "wan"):
        for path in sorted((results / name).glob("flops*.json"), key=lambda path: path.stem):
            record = read(path, VIDEO_COUNTS, f"bash scripts/reproduce_{name}_flops.sh")
            rows += [row for row in record["rows"] if row.get("kept_goal")]
    if not rows:
        raise UserError(
            f"a count under {results} with a goal for what is kept is not there; make it with "
            "`bash scripts/reproduce_hunyuan_flops.sh`"
        )

    def line(row: dict[str, Any]) -> list[str]:
        s, goal, kept = row["settings"], row["kept_goal"], row["kept_bytes"]
        return [
            f"{s['model']}, {video_size(s)}",
            row["label"],
            f"{s['rows']} × {s['tokens']}",
            str(s["sites"]),
            number(goal["value_gib"], 2),
            f"< {goal['bound_gib']:g}, {'met' if goal['met'] else 'not met'}",
            number(kept["layerwise"] / GIB, 2),
            number(kept["layerwise"] / kept["folded"] if kept["folded"] else None, 1, "x"),
        ]

    header = [
        "video", "run", "rows × tokens", "sites", "folded keeps GiB", "goal", "layerwise keeps GiB", "layerwise to folded"
    ]  # fmt: skip
    s, made = rows[0]["settings"], rows[0]["conditions"]
    return "\n\n".join(
        [
            markdown_table(header, [line(row) for row in rows]),
            made_with(
                f"features in {s['precision']}, folded sums in float32, those of both guidance branches together",
                "computed on the meta device",
                f"torch {made['versions']['torch']}, {made['date'][:10]}",
            ),
        ]
    )


def dit_benchmark(results: Path) -> str:
    return benchmark_table(results, "dit", "DiT-XL/2")


def flux_benchmark(results: Path) -> str:
    return benchmark_table(results, "flux", "flux-dev")


def hunyuan_benchmark(results: Path) -> str:
    return benchmark_table(results, "hunyuan", "hunyuan-video --depth 1 --height 256 --width 256 --num-frames 17")


def wan_benchmark(results: Path) -> str:
    return benchmark_table(results, "wan", "wan-t2v-1.3B --depth 1 --height 256 --width 256 --num-frames 17")


def hidream_benchmark(results: Path) -> str:
    return benchmark_table(results, "hidream", "hidream-full --depth 1 --height 320 --width 320")


def benchmark_table(results: Path, name: str, model: str) -> str:
    """Timings on random weights, a column for each record results/NAME/benchmark-*.json.

    model: the flags after --model of the command that makes the record.
    """
    command = f"python eval/benchmark.py --model {model} --whole-run --out results/{name}/benchmark-cpu.json"
    paths = sorted((results / name).glob("benchmark-*.json"))
    records = [read(path, BENCHMARK, command) for path in paths or [results / name / "benchmark-cpu.json"]]

    def each(name: str, value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(value(record) for record in records)]

    def in_full_steps(timing: str) -> Callable[[dict[str, Any]], str]:
        def shown(record: dict[str, Any]) -> str:
            if timing not in record["forecast_step"]:
                return "not measured"
            seconds = record["forecast_step"][timing]["median_s"]
            return f"{1e3 * seconds:.2f} ms ({100 * seconds / record['full_step']['plain']['median_s']:.2f} %)"

        return shown

    def whole(record: dict[str, Any]) -> str:
        runs = record.get("whole_run")
        if not runs or not runs.keys() >= {"uncached", record["label"]}:
            return "not run"
        uncached, cached = runs["uncached"], runs[record["label"]]
        return f"{uncached['median_s']:.2f} s → {cached['median_s']:.2f} s (runs of each: {cached['repeats']})"

    def where_measured(key: str, name: str, shown: Callable[[Any], str]) -> list[list[str]]:
        """A row for what some records have and others do not; none where no record has it."""
        if not any(record.get(key) for record in records):
            return []
        return [each(name, lambda record: shown(record[key]) if record.get(key) else "not measured")]

    def goal(key: str, digits: int, scale: float = 1, unit: str = "") -> list[str]:
        def shown(record: dict[str, Any]) -> str:
            reached = record["goals"].get(key)
            if reached is None or reached.get("value") is None:
                return "not measured"
            value = apart_from(scale * float(bound), scale * reached["value"], digits)
            return f"{value}{unit}, {'met' if reached.get('met') else 'not met'}"

        wanted = next(record["goals"][key] for record in records if key in record["goals"])
        relation, bound = wanted["goal"].split()
        return each(f"{wanted['name']} (goal {relation} {scale * float(bound):g}{unit})", shown)

    timed = dict.fromkeys(name for record in records for name in record["forecast_step"])
    rows = [
        each("method", lambda r: r["label"]),
        each("full step, uncached", lambda r: number(1e3 * r["full_step"]["plain"]["median_s"], 2, " ms")),
        each("full step with folding", lambda r: number(1e3 * r["full_step"]["folded"]["median_s"], 2, " ms")),
        *(each(f"forecast step, {name} (of a full step)", in_full_steps(name)) for name in timed),
        each("whole run, uncached → cached", whole),
        each("speed-up, measured on whole runs", lambda r: number(r["speedup"].get("measured"), 2, "x")),
        each("speed-up, composed from the steps", lambda r: number(r["speedup"]["composed"], 2, "x")),
        each("FLOPs ratio", lambda r: number(r["speedup"]["flops"], 2, "x")),
        *(goal(key, *how) for key, how in GOALS_SHOWN.items() if any(key in record["goals"] for record in records)),
        *where_measured(
            "diffusers", "full step, ours to diffusers'", lambda d: f"{d['ours_over_theirs']['median']:.3f}x"
        ),
        *where_measured("kernels", "kernels of a forecast step", str),
        *where_measured(
            "peak_bytes",
            "peak memory, uncached → folded",
            lambda peak: f"{peak['uncached'] / GIB:.2f} GiB → {peak['folded'] / GIB:.2f} GiB",
        ),
        each("kept features, folded", lambda r: number(r["flops"]["kept_bytes"]["folded"] / MIB, 1, " MiB")),
        each("kept features, layerwise", lambda r: number(r["flops"]["kept_bytes"]["layerwise"] / MIB, 1, " MiB")),
    ]
    header = ["", *(f"{record['conditions']['device']}, {record['settings']['precision']}" for record in records)]
    theirs: dict[str, list[str]] = {}
    for row in published_latency(published(name), "taylorseer"):
        shown = f"N={row['interval']} {row['latency_speedup']:.2f}x"
        if row["flops_speedup"]:
            shown += f" at {row['flops_speedup']:.2f}x fewer FLOPs"
        theirs.setdefault(row["source"].split("; ")[0], []).append(shown)
    sources = "; ".join(f"{'; '.join(shown)} ({source})" for source, shown in theirs.items())
    lines = [benchmark_conditions(record) for record in records]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            f"Published for comparison, TaylorSeer as released: {sources}.",
            *dict.fromkeys(lines),
        ]
    )


GOALS_SHOWN: dict[str, tuple] = {
    "latency_over_flops": (3,),
    "forecast_over_full": (2, 100, " %"),
    "folding_overhead": (2, 100, " %"),
    "kept_ratio_order_2": (1, 1, "x"),
    "forecast_operations": (0,),
    "peak_memory": (2, 100, " %"),
}
"""Digits, scale and unit of the goals of eval/benchmark.py."""


def blocks(config: dict[str, Any]) -> str:
    """How many blocks a model of a configuration has, double and single ones where it has both."""
    many, single = next(names for names in BLOCK_FIELDS if names[0] in config)
    if single in config:
        return f"{config[many]} double and {config[single]} single blocks"
    return f"{config[many]} blocks"


def benchmark_conditions(record: dict[str, Any]) -> str:
    s, kept = record["settings"], record["full_step"]["plain"]
    depth = f", of reduced depth ({blocks(s['config'])})" if s["reduced_depth"] else ""
    text = f" and {s['text_tokens']} of text" if s.get("text_tokens") else ""
    size = f", {video_size(s)}" if s.get("frames") else ""
    return made_with(
        f"{s['model']} on random weights{depth}{size}",
        f"{s['rows']} rows of {s['tokens']} tokens{text}, {s['num_steps']} steps, {s['attention']} attention"
        + (", compiled" if s["compile"] else ""),
        f"medians of {kept['repeats']} timings",
        "features kept layerwise grow with the depth, folded ones do not" if depth else None,
        run_conditions(record["conditions"]),
    )


def dit_samples(results: Path) -> str:
    """Samples of the embedded model as the main job makes them: what each method computes, takes, keeps, how good it is."""
    return samples_table(samples_record(results, "dit"), results)


def dit_quality(results: Path) -> str:
    """The same on more samples, for the model card."""
    command = "bash scripts/run_dit.sh --compare --per-class 20 --batch-size 20"
    out = "--output-dir results/dit --name fashion-mnist-quality"
    return samples_table(read(results / "dit" / "fashion-mnist-quality.json", SAMPLES, f"{command} {out}"), results)


def flux_samples(results: Path) -> str:
    """Samples of the embedded FLUX as the main job makes them."""
    return samples_table(samples_record(results, "flux"), results)


def flux_quality(results: Path) -> str:
    """The same on prompts with labels that were held out of training, for the model card."""
    return held_out_samples(results, "flux")


def hidream_samples(results: Path) -> str:
    """Samples of the embedded HiDream as its main job makes them."""
    return samples_table(samples_record(results, "hidream"), results)


def hidream_quality(results: Path) -> str:
    """The same on prompts with labels that were held out of training, for the model card."""
    return held_out_samples(results, "hidream")


def held_out_samples(results: Path, name: str) -> str:
    """Samples of an embedded text-to-image model for labels that it never saw."""
    prompts = "--compare --prompt-file common/emoji/prompts-held-out.txt"
    command = f"bash scripts/run_{name}.sh {prompts}, then copy record.json"
    return samples_table(read(results / name / f"{name}-tiny-held-out.json", SAMPLES, command), results)


def hunyuan_samples(results: Path) -> str:
    """Videos of the embedded HunyuanVideo as its main job makes them."""
    return samples_table(samples_record(results, "hunyuan"), results)


def wan_samples(results: Path) -> str:
    """Videos of the embedded Wan2.1 as its main job makes them."""
    return samples_table(samples_record(results, "wan"), results)


def flux_nearest(results: Path) -> str:
    """How near samples of the embedded FLUX come to its training images."""
    return emoji_nearest(results, "flux")


def hidream_nearest(results: Path) -> str:
    """How near samples of the embedded HiDream come to its training images."""
    return emoji_nearest(results, "hidream")


def emoji_nearest(results: Path, family: str) -> str:
    """How near samples come to the training images, beside real images that were not trained on."""
    out = results / family / f"{family}-tiny-nearest"
    record = read(out.with_suffix(".json"), NEAREST, f"python eval/nearest.py FOLDER --out {out}")
    shown = {
        f"{len(record['nearest'])} samples": record["samples"],
        f"{record['num_real_test_images']} real test images": record["real_test_images"],
    }
    quantiles = list(record["samples"])
    rows = [[name, *(number(values.get(key), 3) for key in quantiles)] for name, values in shown.items()]
    return markdown_table([f"distance to the nearest of {record['training_images']} training images", *quantiles], rows)


def samples_table(record: dict[str, Any], results: Path) -> str:
    """The rows of a record of a sampling command."""
    s = record["settings"]
    judged, explained = quality(record, results)
    header = ["method", "full steps", "FLOPs ratio", "latency ratio", "cache MiB", "PSNR dB", *judged]
    rows = [
        [
            row["label"],
            f"{len(row['full_steps'])}/{row['num_steps']}",
            number(row["flops_ratio"], 2, "x"),
            number(row["latency"].get("ratio") if row.get("latency") else None, 2, "x"),
            number(row["kept_bytes"] / MIB, 1),
            psnr_cell(row.get("psnr")),
            *(column[i] for column in judged.values()),
        ]
        for i, row in enumerate(record["rows"])
    ]
    procedure = [s["solver"]] if s.get("solver") else []
    guidance = s.get("guidance_scale", s.get("guidance"))
    if guidance is not None:
        procedure.append(f"guidance {guidance:g}")
    return "\n\n".join(
        [
            markdown_table(header, rows),
            made_with(
                f"{s['model']}, trained weights, {record['num_samples']} samples in batches of {s['batch_size']}, "
                + ", ".join([f"seed {s['seed']}", *procedure]),
                "PSNR to the uncached samples of the same noise",
                INTERVALS,
                *explained,
                *rows_conditions(record),
            ),
        ]
    )


def quality(record: dict[str, Any], results: Path) -> tuple[dict[str, list[str]], list[str]]:
    """What samples were judged by: columns of cells by heading, none of what means nothing on this model; and lines on it."""
    rows = record["rows"]
    key = next((key for key in SCORES if any(row.get(key) for row in rows)), None)
    if key is None:
        return {}, []
    name = score_name(key)
    shown, told = screened(record["settings"]["model"], {key: name}, record["num_samples"], results / "metrics")
    if not shown:
        return {}, told
    scale = 100 if key.endswith("accuracy") else 1
    columns = {
        name: [plus_minus(row.get(key), 1, scale=scale) for row in rows],
        f"change of {name}": [change_cell(row, key) for row in rows],
    }
    scorer, real = record.get("scorer"), record.get("real_test_accuracy")
    meanings = {
        "score": scorer
        and "score: 100 x cosine of image and prompt by the shipped in-domain scorer (not CLIP), "
        f"{scorer['ceiling']:.1f} on real images with their captions, {scorer['ceiling_new_labels']:.1f} where the label was "
        f"never trained on, {number(scorer['floor'], 1)} with shuffled captions",
        "class_accuracy": real
        and f"class accuracy by the shipped in-domain classifier, {100 * real:.1f} % on real test images",
        "flicker": FLICKER_MEANING,
    }
    return columns, [*filter(None, [meanings[key]]), CHANGES, *told]


def score_name(key: str) -> str:
    return key.replace("_", " ") + (" %" if key.endswith("accuracy") else "")


COMPARE = "bash scripts/compare.sh"


def comparison_record(results: Path, name: str) -> dict[str, Any] | None:
    """Every method on the embedded model of a backbone; None where that was not run."""
    path = results / name / f"compare-{BACKBONES[name].embedded}.json"
    return read(path, COMPARISON, COMPARE) if path.exists() else None


def comparison_table(name: str) -> Callable[[Path], str]:
    """What makes the table of a backbone's comparison, with its plot."""

    def table(results: Path) -> str:
        record, stem = comparison_record(results, name), f"compare-{BACKBONES[name].embedded}"
        if record is None:
            return f"Not run; `{COMPARE}` does."
        plot = results / name / f"{stem}.png"
        shown = [f"![quality against cost](../results/{name}/{stem}.png)"] if plot.exists() else []
        return "\n\n".join([compared_methods(record, results), *shown])

    return table


def compared_methods(record: dict[str, Any], results: Path) -> str:
    """The rows of a comparison; one that failed says why, and so does a measure that means nothing on this model."""
    rows = [row for row in record["rows"] if "error" not in row]
    failed = [f"{row['name']} failed: {row['error']}" for row in record["rows"] if "error" in row]
    headings = {"ssim": "SSIM", "lite0": LITE0}
    headings |= {key: f"change of {score_name(key)}" for key in SCORES if any(row.get(key) for row in rows)}
    shown, left_out = screened(record["settings"]["model"], headings, record["num_samples"], results / "metrics")
    digits = {"ssim": 3, "lite0": 1}

    def merit(row: dict[str, Any], key: str) -> str:
        return plus_minus(row.get(key), digits[key]) if key in digits else change_cell(row, key)

    header = [
        "method", "full steps", "FLOPs ratio", "latency ratio", "processor time ratio", "cache MiB", "PSNR dB",
        *(headings[key] for key in shown),
    ]  # fmt: skip
    cells = [
        [
            row["name"],
            computed_cell(row),
            number(row["flops_ratio"], 2, "x"),
            number(row["latency"]["ratio"], 2, "x"),
            number(row["latency"].get("processor_ratio"), 2, "x"),
            number(row["kept_bytes"] / MIB, 1),
            psnr_cell(row["psnr"]),
            *(merit(row, key) for key in shown),
        ]
        for row in rows
    ]
    changes = [CHANGES] if {*shown} & {*SCORES} else []
    uncached = next((row for row in rows if row["label"] == "uncached"), {})
    of_uncached = [
        f"{score_name(key)} of the uncached samples {plus_minus(uncached[key], 1, scale=100 if 'accuracy' in key else 1)}"
        for key in shown
        if key in SCORES and key in uncached
    ]
    return "\n\n".join(
        [
            markdown_table(header, cells),
            made_with(comparison_facts(record), INTERVALS, *changes, *of_uncached, *left_out, *failed),
        ]
    )


def comparison_facts(record: dict[str, Any]) -> str:
    s = record["settings"]
    return (
        f"{s['model']}, {s['num_steps']} steps, {record['num_samples']} samples in batches of {record['batch_size']}, seed "
        f"{s['seed']}, {run_conditions(record['conditions'])}"
    )


def compared_forms(results: Path) -> str:
    """Where features are kept, on every embedded model: predictor, full steps and samples are the same."""
    records = [record for name in BACKBONES if (record := comparison_record(results, name)) is not None]
    if not records:
        return f"Not run; `{COMPARE}` does."
    cells = []
    for record in records:
        rows = [row for row in record["rows"] if "error" not in row and "forms" in row["groups"]]
        by_setting: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_setting.setdefault(row["label"].removesuffix(f"-{row['form']}"), []).append(row)
        for setting, alike in by_setting.items():
            first = alike[0]
            cells += [
                [
                    record["settings"]["model"],
                    setting,
                    row["form"],
                    number(row["kept_bytes"] / MIB, 1),
                    number(row["latency"].get("processor_ratio"), 2, "x"),
                    psnr_cell(row["psnr"]),
                    "–" if row is first else plus_minus(paired(row, first), 2, signed=True),
                    plus_minus(row["lite0"], 1),
                ]
                for row in alike
            ]
    header = [
        "model", "setting", "features kept", "cache MiB", "processor time ratio", "PSNR dB", "PSNR dB over the first form",
        LITE0,
    ]  # fmt: skip
    return "\n\n".join(
        [
            markdown_table(header, cells, left=(0, 1, 2)),
            made_with(INTERVALS, *(comparison_facts(record) for record in records)),
        ]
    )


def paired(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The interval of the difference in PSNR over the same samples, those left out that are identical to the uncached."""
    pairs = zip(row["samples"]["psnr_db"], other["samples"]["psnr_db"], strict=True)
    return mean_interval([a - b for a, b in pairs if a is not None and b is not None])


def searched_schedules(results: Path) -> str:
    """What the schedules that ship gain over the published rule and over even spacing, on samples that no search has seen."""
    rows, facts = [], []
    for name, backbone in BACKBONES.items():
        path = results / name / "schedules.json"
        command = f"python eval/schedule_gains.py --model {backbone.embedded} --out results/{name}/schedules.json"
        record = read(path, GAINS, command)
        by_rule = {(row["count"], row["schedule"]): row for row in record["rows"]}
        for count in dict.fromkeys(row["count"] for row in record["rows"]):
            lacking = [rule for rule in ("published", "even", "searched") if (count, rule) not in by_rule]
            if lacking:
                raise UserError(
                    f"{path} has no {lacking[0]} schedule of {count} full steps; make it anew with `{command}`"
                )
            searched = by_rule[count, "searched"]
            others = [psnr_cell(by_rule[count, rule]["psnr"]) for rule in ("published", "even")]
            gain = (searched["gain"] or {}).get("published", {})
            interval = number(gain.get("ci95_db"), 1)
            rows.append(
                [
                    record["model"],
                    f"{count}/{record['num_steps']}",
                    *others,
                    psnr_cell(searched["psnr"]),
                    f"{gain['mean_db']:+.1f} ± {interval}" if gain.get("mean_db") is not None else number(None),
                    " ".join(map(str, searched["full_steps"])),
                ]
            )
        facts.append(f"{record['model']}: {record['num_samples']} samples, order {record['forecaster']['max_order']}")
    header = ["model", "full steps", "published rule", "even", "searched", "gain dB", "searched steps"]
    explained = "PSNR in dB to the uncached samples; gain: over the published rule, with 95 % of the mean over samples"
    return "\n\n".join(
        [markdown_table(header, rows), made_with(*facts, explained, run_conditions(record["conditions"]))]
    )


def tracked(results: Path, *, name: str) -> str:
    """How often an embedded video model shows what held-out captions ask for."""
    model = BACKBONES[name].embedded
    out = f"results/{name}/tracking.json"
    record = read(results / name / "tracking.json", TRACKING, f"python eval/track.py --model {model} --out {out}")
    s = record["settings"]
    return "\n\n".join(
        [
            markdown_table(TRACKING_HEADER, tracking_cells(record)),
            made_with(
                f"{model}, held-out captions, uncached, {s['num_steps']} steps, guidance {s['guidance']:g}, seed {s['seed']}",
                TRACKING_MEANING,
                run_conditions(record["conditions"]),
            ),
        ]
    )


def method_costs(results: Path) -> str:
    """What deciding and forecasting cost beside a full step of FLUX.1 at its full width, and what is kept at its full size."""
    path = results / "flux" / "method-costs.json"
    command = "python eval/method_costs.py --model flux-dev --depth 1 --height 256 --width 256 --out"
    record = read(path, METHOD_COSTS, f"{command} results/flux/method-costs.json")
    full, s = record["full_step_s"], record["settings"]
    return "\n\n".join(
        [
            markdown_table(COSTS_HEADER, cost_cells(record)),
            made_with(
                f"{s['model']}; shares of an uncached step of {full:.2f} s, at full width and depth {s['timed']['depth']}, "
                f"{s['timed']['tokens']} tokens; kept at full size, {s['counted']['tokens']} tokens",
                *cost_errors(record),
                run_conditions(record["conditions"]),
            ),
        ]
    )


PARTIAL_RECORDS = {
    "flux": "--model flux-dev --methods toca duca clusca delta_dit --depth 1 --height 256 --width 256 --repeats 3 --threads 1",
    "dit": "--model DiT-XL/2 --depth 4 --repeats 3 --threads 1",
}
"""What is timed of steps that compute part of a model, by the folder of the record."""


def partial_steps(results: Path) -> str:
    """What steps that compute part of a model take beside their share of the FLOPs, at published widths."""
    tables = []
    for name, flags in PARTIAL_RECORDS.items():
        path = results / name / "partial-steps.json"
        command = f"python eval/partial_steps.py {flags} --out results/{name}/partial-steps.json"
        record = read(path, PARTIAL_STEPS, command)
        s, machine = record["settings"], record["machine"]
        load, processors = machine["load_before"], machine["processors"]
        busy = f"a load of {load:.1f} on {processors} processors before it began" if load >= processors / 4 else None
        tables += [
            f"**{s['model']}**",
            markdown_table(PARTIAL_HEADER, partial_cells(record), left=(0, 1)),
            made_with(
                f"{s['model']} at full width and depth {s['depth']}, {counted(s['rows'], 'row')} of {s['tokens']} tokens; "
                f"shares of an uncached step of {record['full_step_s']:.2f} s, taken beside it; medians over up to "
                f"{s['repeats']} steps",
                busy,
                *cost_errors(record),
                run_conditions(record["conditions"]),
            ),
        ]
    return "\n\n".join([*tables, f"*{PARTIAL_MEANING}*"])


def flux_op_counts(results: Path) -> str:
    """Operations of a forecast step: the engines here, and other implementations."""
    command = "python eval/op_counts.py --out results/flux/op-counts.json"
    record = read(results / "flux" / "op-counts.json", OP_COUNTS, command)
    s, made = record["settings"], record["conditions"]
    fewest = min((row["operations"] for row in record["rows"] if row.get("operations")), default=None)
    rows = [
        [
            row["label"] + (f", {row['package']}" if row.get("package") else ""),
            number(row.get("operations"), 0),
            number(row["operations"] / fewest if row.get("operations") else None, 1, "x"),
        ]
        for row in record["rows"]
    ]
    return "\n\n".join(
        [
            markdown_table(["a forecast step of", "operations", "to the fewest"], rows),
            made_with(
                f"{s['depth']} double and {s['depth_single_blocks']} single blocks, {s['sites']} sites, "
                f"order {s['max_order']}, {made['dtype']}; a narrow model, the count being the same at every width",
                record["units"],
                f"torch {made['versions']['torch']}, {made['date'][:10]}",
            ),
        ]
    )


def diffusers_fronts(results: Path) -> str:
    """Caches on diffusers' FluxPipeline, of a narrow model as deep as FLUX.1 and of the embedded one's shape."""
    command = "python eval/compare_fronts.py --out results/flux/fronts-cpu.json"
    record = read(results / "flux" / "fronts-cpu.json", FRONTS, command)
    s, parts = record["settings"], []
    for model, shape in s["sizes"].items():
        rows = [front_cells(row) for row in record["rows"] if row["model"] == model]
        blocks = f"{shape['double_blocks']} double and {shape['single_blocks']} single blocks"
        parts += [
            f"**{model}**: {blocks} of width {shape['width']}, {shape['tokens']} tokens",
            markdown_table(FRONTS_HEADER, rows),
        ]
    made = made_with(
        f"random weights, {s['num_steps']} steps; interval {s['interval']}, order {s['max_order']}, {s['warmup_steps']} warm-up"
        f" steps where a cache has them; medians over {s['repeats']} runs after a first one, ratios taken within each run",
        record["units"],
        run_conditions(record["conditions"]),
    )
    return "\n\n".join([*parts, made])


def dit_training(results: Path) -> str:
    """How the embedded model was trained: the facts that train.py wrote beside it."""
    record = read(
        results / "dit" / "fashion-mnist-training.json",
        TRAINING["dit"],
        "bash scripts/train_dit.sh, then copy model.json",
    )
    config, losses = record["config"], record["final_loss"]
    return training_table(
        record,
        shape=f"{blocks(config)} of {config['hidden_size']}, {config['num_heads']} heads, patch {config['patch_size']}",
        images=60000,
        found=[["final L_simple, L_vlb", f"{losses['simple']:.4f}, {losses['vlb']:.4f} bits"]],
    )


def flux_training(results: Path) -> str:
    """The same of the embedded text-to-image model."""
    record = read(
        results / "flux" / "flux-tiny-training.json",
        TRAINING["flux"],
        "bash scripts/train_flux.sh, then copy model.json",
    )
    config = record["config"]
    shape = f"{blocks(config)} of {config['hidden_size']}, {config['num_heads']} heads"
    return flow_training(record, shape, record["training_images"])


def hidream_training(results: Path) -> str:
    """The same of the embedded HiDream."""
    record = read(
        results / "hidream" / "hidream-tiny-training.json",
        TRAINING["hidream"],
        "bash scripts/train_hidream.sh, then copy model.json",
    )
    config = hidream_config(results / "hidream" / "hidream-tiny-training.json", record["config"])
    experts = f"{config.num_activated_experts} of {config.num_routed_experts} experts and a shared one"
    shares = [100 * share for gate in record["expert_shares"] for share in gate]
    return flow_training(
        record,
        f"{blocks(record['config'])} of {config.hidden_size}, {config.num_attention_heads} heads, {experts}",
        record["training_images"],
        ["an expert's share of the choices, in any block", f"{min(shares):.1f} % to {max(shares):.1f} %"],
    )


def wan_training(results: Path) -> str:
    """The same of the embedded Wan2.1."""
    record = read(
        results / "wan" / "wan-tiny-training.json", TRAINING["wan"], "bash scripts/train_wan.sh, then copy model.json"
    )
    config = record["config"]
    return video_training(record, f"{blocks(config)} of {config['dim']}, {config['num_heads']} heads")


def hunyuan_training(results: Path) -> str:
    """The same of the embedded HunyuanVideo."""
    record = read(
        results / "hunyuan" / "hunyuan-tiny-training.json",
        TRAINING["hunyuan"],
        "bash scripts/train_hunyuan.sh, then copy model.json",
    )
    config = record["config"]
    return video_training(record, f"{blocks(config)} of {config['hidden_size']}, {config['heads_num']} heads")


def video_training(record: dict[str, Any], shape: str) -> str:
    """The facts of a training run on clips that are made on the fly."""
    patch = " × ".join(map(str, record["config"]["patch_size"]))
    return flow_training(record, f"{shape}, patch {patch}", None)


def flow_training(record: dict[str, Any], shape: str, images: int | None, *further: list[str]) -> str:
    """The facts of a training run by the loss of the velocity; `further` rows of what it led to, others as `training_table`."""
    loss = ["final loss of the velocity", f"{record['final_loss']['flow']:.4f}"]
    return training_table(record, shape=shape, images=images, found=[loss, *further])


def training_table(record: dict[str, Any], *, shape: str, images: int | None, found: list[list[str]]) -> str:
    """The facts of a training run; `images` are those of an epoch, None without end; `found` rows of what it led to."""
    t, made = record["training"], record["conditions"]
    epochs = "" if images is None else f" ({record['images_seen'] / images:.1f} epochs)"
    optimizer = OPTIMIZERS[t.get("optimizer") or "adamw"]  # runs that knew of no other do not say
    rows = [
        ["model", f"{shape}; {record['num_parameters'] / 1e6:.2f} M parameters"],
        ["steps × samples", f"{t['steps']} × {t['batch_size']}{epochs}"],
        [
            "optimiser",
            f"{optimizer}, rate {t['lr']:g}, {t['lr_schedule']} after {t['lr_warmup_steps']} steps of warm-up",
        ],
        ["average of weights", f"EMA, decay {t['ema_decay']}"],
        *found,
        ["precision", f"{t['precision']} products, float32 weights"],
        ["hardware", made["device"]],
        ["wall-clock time", f"{record['seconds'] / 3600:.1f} h, beside other work on the same two cores"],
        [
            "seed, versions",
            f"{t['seed']}; Python {made['python']}, torch {made['versions']['torch']}, {made['date'][:10]}",
        ],
    ]
    return markdown_table(["", ""], rows)


def flux_busy_machine(results: Path) -> str:
    """A step of the embedded FLUX alone and beside busy processes, by how long threads wait awake."""
    command = "python eval/busy_machine.py --out results/flux/busy-machine.json"
    record = read(results / "flux" / "busy-machine.json", BUSY_MACHINE, command)
    columns = list(dict.fromkeys(row["neighbours"] for row in record["rows"]))
    names = {0: "alone", 1: "beside one busy process"}
    header = ["GOMP_SPINCOUNT", *(names.get(n, f"beside {n} busy processes") for n in columns)]
    rows = []
    for spins in dict.fromkeys(row["spins"] for row in record["rows"]):
        timings = {
            row["neighbours"]: f"{row['median_ms']:.0f} ms ({row['min_ms']:.0f}-{row['max_ms']:.0f})"
            for row in record["rows"]
            if row["spins"] == spins
        }
        cells = [timings.get(n, number(None)) for n in columns]
        whose = {OPENMPS_OWN_SPINS: " (OpenMP's own)", SPINS: " (of the commands)"}.get(spins, "")
        rows.append([f"{spins}{whose}", *cells])
    s = record["settings"]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            made_with(
                f"a full step of {s['model']}, {s['batch_size']} images, median and range of {s['repeats']} timings; "
                f"{record['cores']} cores",
                run_conditions(record["conditions"]),
            ),
        ]
    )


def validations(results: Path) -> list[dict[str, Any]]:
    """The records of eval/validate_measures.py that there are; UserError where there is none."""
    paths = {model: record_path(model, results / "metrics") for model in CANDIDATES}
    there = [model for model in CANDIDATES if paths[model].exists()] or [*CANDIDATES][:1]
    return [read(paths[model], VALIDATION, validation_command(model)) for model in there]


def not_validated(records: list[dict[str, Any]]) -> str | None:
    """The models that have no record."""
    others = [model for model in CANDIDATES if model not in {record["model"] for record in records}]
    return f"not validated yet: {', '.join(others)}" if others else None


def measure_validation(results: Path) -> str:
    """Every measure of every embedded model with what was asked of it."""
    records = validations(results)
    rows = [[record["model"], *cells] for record in records for cells in verdict_cells(record)]
    return "\n\n".join(
        [
            markdown_table(["model", *VERDICTS_HEADER], rows, left=(0, 1)),
            made_with(VERDICTS_MEANING, *map(validated, records), not_validated(records)),
        ]
    )


def measure_noise(results: Path) -> str:
    """How many samples it takes to tell caching methods apart, by every measure."""
    records = validations(results)
    rows = [[record["model"], *cells] for record in records for cells in noise_cells(record)]
    return "\n\n".join(
        [
            markdown_table(["model", *NOISE_HEADER], rows, left=(0, 1, 2, 3)),
            made_with(NOISE_MEANING, *map(validated, records)),
        ]
    )


def validated(record: dict[str, Any]) -> str:
    """Counts and conditions of a validation."""
    s = record["settings"]
    real = f"{s['num_real']} real ones of every rung, {s['num_reference']} for reference"
    counts = f"{s['num_samples']} samples, {real}, {s['num_pairs']} pairs"
    return f"{record['model']}: {counts}, {run_conditions(record['conditions'])}"


TABLES: dict[str, Callable[[Path], str]] = {
    "overview": overview,
    "methods": methods,
    "method-presets": presets,
    "toca-recipes": recipes,
    "dit-flops": dit_flops,
    "dit-benchmark": dit_benchmark,
    "dit-samples": dit_samples,
    "dit-quality": dit_quality,
    "dit-training": dit_training,
    "flux-flops": flux_flops,
    "flux-benchmark": flux_benchmark,
    "flux-op-counts": flux_op_counts,
    "diffusers-fronts": diffusers_fronts,
    "flux-samples": flux_samples,
    "flux-quality": flux_quality,
    "flux-nearest": flux_nearest,
    "flux-training": flux_training,
    "flux-busy-machine": flux_busy_machine,
    "hunyuan-flops": hunyuan_flops,
    "hunyuan-benchmark": hunyuan_benchmark,
    "hunyuan-samples": hunyuan_samples,
    "hunyuan-training": hunyuan_training,
    "hunyuan-tracking": functools.partial(tracked, name="hunyuan"),
    "wan-flops": wan_flops,
    "wan-benchmark": wan_benchmark,
    "wan-samples": wan_samples,
    "wan-training": wan_training,
    "wan-tracking": functools.partial(tracked, name="wan"),
    "video-memory": video_memory,
    "hidream-flops": hidream_flops,
    "hidream-benchmark": hidream_benchmark,
    "hidream-samples": hidream_samples,
    "hidream-quality": hidream_quality,
    "hidream-nearest": hidream_nearest,
    "hidream-training": hidream_training,
    **{f"{name}-comparison": comparison_table(name) for name in BACKBONES},
    "forms": compared_forms,
    "searched-schedules": searched_schedules,
    "method-costs": method_costs,
    "partial-steps": partial_steps,
    "diffusers-transformers": transformers,
    "diffusers-hooks": hooks,
    "measure-validation": measure_validation,
    "measure-noise": measure_noise,
    **beyond.TABLES,
    **{f"gpu-{name}": functools.partial(gpu.document_table, name=name) for name in gpu.TABLES},
}


def marked_documents() -> list[Path]:
    """Documents of the repository with a marker of a table."""
    return [path for path in DOCUMENTS if BEGINS.search(text := read_text(path)) or ENDS.search(text)]


def filled(path: Path, text: str, results: Path) -> str:
    """The text of a Markdown file with every marked table as the records have it; UserError for markers that do not fit."""
    blocks = BLOCK.findall(text)
    begins, ends = len(BEGINS.findall(text)), len(ENDS.findall(text))
    if not begins and not ends:
        raise UserError(f"{path} has no place for a table; {MARKERS}")
    if not len(blocks) == begins == ends or any(BEGINS.search(body) for _, _, body, _ in blocks):
        raise UserError(f"{path} has {begins} beginnings and {ends} ends of tables that do not fit together; {MARKERS}")
    unknown = [name for _, name, _, _ in blocks if name not in TABLES]
    if unknown:
        raise UserError(f"{path}: table {unknown[0]!r} is unknown; choose from {', '.join(TABLES)}")
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]](results)}\n{m[4]}", text)


def stale_tables(path: Path, results: Path) -> list[str]:
    """Names of a Markdown file's marked tables that differ from what the records say."""
    text = read_text(path)
    fresh = BLOCK.findall(filled(path, text, results))
    return [
        name for (_, name, body, _), (_, _, wanted, _) in zip(BLOCK.findall(text), fresh, strict=True) if body != wanted
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.shown:
        print(TABLES[args.shown](args.results))
        return
    if args.check:
        stale = {path: names for path in args.readme if (names := stale_tables(path, args.results))}
        for path, names in stale.items():
            print(f"{path}: {', '.join(names)} differ from the records; run `python eval/tables.py`", file=sys.stderr)
        if stale:
            sys.exit(1)
        print(f"{', '.join(map(str, args.readme))}: every table is that of the records")
        return
    fresh = {path: filled(path, read_text(path), args.results) for path in args.readme}
    for path, text in fresh.items():
        lines_end = "\r\n" if b"\r\n" in path.read_bytes() else "\n"  # as in the file that is there
        write_text(path, text.replace("\n", lines_end))
        print(f"wrote {', '.join(name for _, name, _, _ in BLOCK.findall(text))} into {path}")


if __name__ == "__main__":
    run_command(main)
