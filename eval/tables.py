"""Write the tables of the README and the model card from the records under results/, between their markers.

No figure is typed by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.paper import published
from seerkit.cli import Parser, run_command
from seerkit.files import written_whole
from seerkit.tables import markdown_table, number

ROOT = Path(__file__).resolve().parents[1]
MARKED = [ROOT / "README.md", ROOT / "TaylorSeer-DiT" / "weights" / "README.md"]
EXAMPLES = """
python eval/tables.py
python eval/tables.py --check
python eval/tables.py --print dit-flops
"""
BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
BEGINS = re.compile(r"<!-- table:[^>]*-->")
MIB = 2**20


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--readme", nargs="+", type=Path, default=MARKED, help="Markdown files with markers (default: the repository's)"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the records")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if a table is not that of the records"
    )
    action.add_argument("--print", choices=tuple(TABLES), dest="shown", help="print one table and change nothing")
    return parser.parse_args(argv)


def read(path: Path, command: str) -> dict[str, Any]:
    """A record; ValueError naming the command that makes it if there is none."""
    if not path.is_file():
        raise ValueError(f"the record {path} is not there; make it with `{command}`")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"the record {path} is no JSON ({error}); make it anew with `{command}`") from error


def made_with(*facts: str | None) -> str:
    """The line of conditions under a table."""
    return "*" + "; ".join(fact for fact in facts if fact) + "*"


def run_conditions(conditions: dict[str, Any]) -> str:
    """Device, precision, version and date of a record."""
    threads = f", {conditions['threads']} threads" if conditions.get("threads") else ""
    version, date = conditions["versions"]["torch"], conditions["date"][:10]
    return f"{conditions['device']}{threads}, {conditions['dtype']}, torch {version}, {date}"


def percent(ours: float, theirs: float, digits: int = 2) -> str:
    return f"{100 * (ours / theirs - 1):+.{digits}f} %"


def dit_flops(results: Path) -> str:
    """Published FLOPs of DiT-XL/2, the published counter's formula evaluated here, and our count."""
    record = read(results / "dit" / "flops.json", "bash scripts/reproduce_dit_flops.sh")
    facts = published("dit")
    base = next(row for row in facts["flops"] if row["method"] == "uncached")

    def figure(row: dict[str, Any]) -> tuple[float, str]:
        """TFLOPs of a published row and how it reads; derived from its speed-up where no count is printed."""
        if row["flops_T"] is not None:
            return row["flops_T"], f"{row['flops_T']:.2f}"
        derived = base["flops_T"] / row["speedup"]
        return derived, f"{derived:.2f} ({base['flops_T']:.2f} / {row['speedup']:.2f})"

    ours = record["rows"]
    rows = [
        [*dit_flops_row("uncached", figure(base), ours[0], ours[0]["flops_T_uncached"], uncached=True), base["source"]]
    ]
    for row in ours:
        interval, method = row["schedule"].get("interval"), row["method"]
        match = next((r for r in facts["flops"] if r["method"] == method and r.get("interval") == interval), None)
        figures = dit_flops_row(row["label"], figure(match) if match else None, row, row["flops_T"], uncached=False)
        rows.append([*figures, match["source"] if match else "–"])
    header = [
        "run",
        "full steps",
        "published TFLOPs",
        "its counter, evaluated here",
        "our count",
        "ours to published",
        "FLOPs ratio",
        "published in",
    ]
    first = ours[0]
    terms = "\n".join(f"- {t['term']}: {t['flops_T']:+.4f}" for t in first["published_convention"]["difference"])
    size = 8 * first["settings"]["config"]["input_size"]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            f"From the published counter ({first['published_convention']['flops_T']:.4f} TFLOPs) to our count "
            f"({first['flops_T']:.4f}) of {first['label']}, in TFLOPs of the run:",
            terms,
            made_with(
                f"{first['settings']['model']} at {size}×{size}, {first['settings']['num_steps']} steps, "
                f"{first['settings']['rows']} rows a sample (guidance)",
                "counted on the meta device, 2 operations a multiply-add, folding included",
                f"torch {first['conditions']['versions']['torch']}, {first['conditions']['date'][:10]}",
                "published figures were read in notes on those works (results/paper/dit.json)",
            ),
        ]
    )


def dit_flops_row(
    label: str, figure: tuple[float, str] | None, row: dict[str, Any], count: float, *, uncached: bool
) -> list[str]:
    convention, num_steps = row["published_convention"], row["settings"]["num_steps"]
    return [
        label,
        f"{num_steps if uncached else len(row['full_steps'])}/{num_steps}",
        figure[1] if figure else "not published",
        number(convention["flops_T_uncached" if uncached else "flops_T"], 2),
        number(count, 2),
        percent(count, figure[0]) if figure else "–",
        number(1.0 if uncached else row["flops_ratio"], 2, "x"),
    ]


def dit_benchmark(results: Path) -> str:
    """Timings on random weights, a column for each record results/dit/benchmark-*.json."""
    command = "python eval/benchmark.py --whole-run --out results/dit/benchmark-cpu.json"
    paths = sorted((results / "dit").glob("benchmark-*.json"))
    if not paths:
        read(results / "dit" / "benchmark-cpu.json", command)
    records = [read(path, command) for path in paths]

    def each(name: str, value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(value(record) for record in records)]

    def in_full_steps(timing: str) -> Callable[[dict[str, Any]], str]:
        def shown(record: dict[str, Any]) -> str:
            seconds = record["forecast_step"][timing]["median_s"]
            return f"{1e3 * seconds:.2f} ms ({100 * seconds / record['full_step']['plain']['median_s']:.2f} %)"

        return shown

    def whole(record: dict[str, Any]) -> str:
        runs = record["whole_run"]
        if not runs:
            return "not run"
        uncached, cached = runs["uncached"], runs[record["label"]]
        return f"{uncached['median_s']:.2f} s → {cached['median_s']:.2f} s ({cached['repeats']} runs each)"

    def goal(key: str, digits: int, scale: float = 1, unit: str = "") -> list[str]:
        def shown(record: dict[str, Any]) -> str:
            reached = record["goals"][key]
            if reached["value"] is None:
                return "–"
            return f"{scale * reached['value']:.{digits}f}{unit}, {'met' if reached['met'] else 'not met'}"

        wanted = records[0]["goals"][key]
        relation, bound = wanted["goal"].split()
        return each(f"{wanted['name']} (goal {relation} {scale * float(bound):g}{unit})", shown)

    rows = [
        each("method", lambda r: r["label"]),
        each("full step, uncached", lambda r: number(1e3 * r["full_step"]["plain"]["median_s"], 2, " ms")),
        each("full step with folding", lambda r: number(1e3 * r["full_step"]["folded"]["median_s"], 2, " ms")),
        *(each(f"forecast step, {name} (of a full step)", in_full_steps(name)) for name in records[0]["forecast_step"]),
        each("whole run, uncached → cached", whole),
        each("speed-up, measured on whole runs", lambda r: number(r["speedup"]["measured"], 2, "x")),
        each("speed-up, composed from the steps", lambda r: number(r["speedup"]["composed"], 2, "x")),
        each("FLOPs ratio", lambda r: number(r["speedup"]["flops"], 2, "x")),
        goal("latency_over_flops", 3),
        goal("forecast_over_full", 2, 100, " %"),
        goal("folding_overhead", 2, 100, " %"),
        goal("kept_ratio_order_2", 1, 1, "x"),
        each("kept features, folded", lambda r: number(r["flops"]["kept_bytes"]["folded"] / MIB, 1, " MiB")),
        each("kept features, layerwise", lambda r: number(r["flops"]["kept_bytes"]["layerwise"] / MIB, 1, " MiB")),
    ]
    header = ["", *(f"{record['conditions']['device']}, {record['settings']['precision']}" for record in records)]
    theirs = "; ".join(
        f"N={row['interval']} {row['latency_speedup']:.2f}x at {row['flops_speedup']:.2f}x fewer FLOPs"
        for row in published("dit")["latency"]
    )
    lines = [benchmark_conditions(record) for record in records]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            f"Published for comparison, TaylorSeer as released: {theirs} ({published('dit')['latency'][0]['source']}).",
            *dict.fromkeys(lines),
        ]
    )


def benchmark_conditions(record: dict[str, Any]) -> str:
    s, kept = record["settings"], record["full_step"]["plain"]
    return made_with(
        f"{s['model']} on random weights{', of reduced depth' if s['reduced_depth'] else ''}",
        f"{s['rows']} rows of {s['tokens']} tokens, {s['num_steps']} steps, {s['attention']} attention"
        + (", compiled" if s["compile"] else ""),
        f"medians of {kept['repeats']} timings",
        run_conditions(record["conditions"]),
    )


def dit_samples(results: Path) -> str:
    """Samples of the embedded model as the main job makes them: what each method computes, takes, keeps, how good it is."""
    return samples_table(
        read(
            results / "dit" / "fashion-mnist.json",
            "bash scripts/run_dit.sh --compare --out results/dit --name fashion-mnist",
        )
    )


def dit_quality(results: Path) -> str:
    """The same on more samples, for the model card."""
    command = "bash scripts/run_dit.sh --compare --per-class 20 --batch-size 20 --out results/dit --name fashion-mnist-quality"
    return samples_table(read(results / "dit" / "fashion-mnist-quality.json", command))


def samples_table(record: dict[str, Any]) -> str:
    """The rows of a record of TaylorSeer-DiT/sample.py."""
    header = ["method", "full steps", "FLOPs ratio", "latency ratio", "cache MiB", "PSNR dB", "class accuracy"]
    rows = [
        [
            row["label"],
            f"{len(row['full_steps'])}/{row['num_steps']}",
            number(row["flops_ratio"], 2, "x"),
            number(row["latency"]["ratio"], 2, "x"),
            number(row["kept_bytes"] / MIB, 1),
            number(row["psnr"]["mean_db"] if row["psnr"] else None, 2),
            number(None if row["class_accuracy"] is None else 100 * row["class_accuracy"], 1, " %"),
        ]
        for row in record["rows"]
    ]
    s, real = record["settings"], record["real_test_accuracy"]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            made_with(
                f"{s['model']}, trained weights, {record['num_samples']} samples in batches of {s['batch_size']}, "
                f"seed {s['seed']}, {s['solver']}, guidance {s['guidance_scale']:g}",
                "PSNR to the uncached samples of the same noise",
                f"class accuracy by the shipped in-domain classifier, {100 * real:.1f} % on real test images"
                if real
                else None,
                run_conditions(record["conditions"]),
            ),
        ]
    )


def dit_training(results: Path) -> str:
    """How the embedded model was trained: the facts that train.py wrote beside it."""
    record = read(results / "dit" / "fashion-mnist-training.json", "bash scripts/train_dit.sh, then copy model.json")
    t, config, made = record["training"], record["config"], record["conditions"]
    shape = f"{config['depth']} blocks of {config['hidden_size']}, {config['num_heads']} heads, patch {config['patch_size']}"
    rows = [
        ["model", f"{shape}; {record['num_parameters'] / 1e6:.2f} M parameters"],
        ["steps × images", f"{t['steps']} × {t['batch_size']} ({record['images_seen'] / 60000:.1f} epochs)"],
        ["optimiser", f"AdamW, rate {t['lr']:g}, {t['lr_schedule']} after {t['lr_warmup_steps']} steps of warm-up"],
        ["average of weights", f"EMA, decay {t['ema_decay']}"],
        ["final L_simple, L_vlb", f"{record['final_loss']['simple']:.4f}, {record['final_loss']['vlb']:.4f} bits"],
        ["precision", f"{t['precision']} products, float32 weights"],
        ["hardware", made["device"]],
        ["wall-clock time", f"{record['seconds'] / 3600:.1f} h, beside other work on the same two cores"],
        [
            "seed, versions",
            f"{t['seed']}; Python {made['python']}, torch {made['versions']['torch']}, {made['date'][:10]}",
        ],
    ]
    return markdown_table(["", ""], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "dit-flops": dit_flops,
    "dit-benchmark": dit_benchmark,
    "dit-samples": dit_samples,
    "dit-quality": dit_quality,
    "dit-training": dit_training,
}


def filled(text: str, results: Path) -> str:
    """The Markdown text with every marked table as the records have it; ValueError for markers that do not fit."""
    blocks = BLOCK.findall(text)
    if len(blocks) != len(BEGINS.findall(text)) or any(BEGINS.search(body) for _, _, body, _ in blocks):
        raise ValueError("a table begins with <!-- table:NAME --> on a line of its own and ends with <!-- /table -->")
    unknown = [name for _, name, _, _ in blocks if name not in TABLES]
    if unknown:
        raise ValueError(f"table {unknown[0]!r} is unknown; choose from {', '.join(TABLES)}")
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]](results)}\n{m[4]}", text)


def stale_tables(text: str, results: Path) -> list[str]:
    """Names of marked tables that differ from what the records say."""
    fresh = BLOCK.findall(filled(text, results))
    return [
        name for (_, name, body, _), (_, _, wanted, _) in zip(BLOCK.findall(text), fresh, strict=True) if body != wanted
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.shown:
        print(TABLES[args.shown](args.results))
        return
    texts = {path: path.read_text() for path in args.readme}
    if args.check:
        stale = {path: names for path, text in texts.items() if (names := stale_tables(text, args.results))}
        for path, names in stale.items():
            print(f"{path}: {', '.join(names)} differ from the records; run `python eval/tables.py`", file=sys.stderr)
        if stale:
            sys.exit(1)
        print(f"{', '.join(map(str, texts))}: every table is that of the records")
        return
    fresh = {path: filled(text, args.results) for path, text in texts.items()}
    for path, text in fresh.items():
        with written_whole(path) as temporary:
            temporary.write_text(text)
        print(f"wrote {', '.join(name for _, name, _, _ in BLOCK.findall(text)) or 'no table'} into {path}")


if __name__ == "__main__":
    run_command(main)
