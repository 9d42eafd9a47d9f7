"""Plots from a record of a sampling command: quality against cost, and the forecast error at every full step."""

import json
from pathlib import Path
from typing import Any

from seerkit.cli import Parser, run_command
from seerkit.files import written_whole

EXAMPLES = """
python eval/plot.py pareto outputs/dit/fashion-mnist/record.json --out pareto.png
python eval/plot.py telemetry outputs/dit/fashion-mnist/record.json --out telemetry.png
"""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a record; ValueError if the file is not one."""
    try:
        return json.loads(path.read_text())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a sampling command (no rows: {error})") from error


def plot_pareto(axis, rows: list[dict[str, Any]]) -> None:
    """PSNR to the uncached samples over the FLOPs ratio, a line a method."""
    compared = [row for row in rows if row.get("psnr") and row["psnr"]["mean_db"] is not None]
    if not compared:
        raise ValueError("the record has no PSNR: sample with --compare")
    for method in dict.fromkeys(row["method"] for row in compared):
        points = sorted((row["flops_ratio"], row["psnr"]["mean_db"]) for row in compared if row["method"] == method)
        axis.plot(*zip(*points, strict=True), marker="o", label=method)
    axis.set(xlabel="FLOPs ratio, uncached / cached", ylabel="PSNR to the uncached samples, dB")


def plot_telemetry(axis, rows: list[dict[str, Any]]) -> None:
    """Relative error of the forecast that would have been used at each full step, a line a cache."""
    errors = {
        row["label"]: [(s["step"], s["forecast_error"]) for s in row["steps"] if "forecast_error" in s] for row in rows
    }
    if not any(errors.values()):
        raise ValueError("the record has no telemetry: sample with --telemetry")
    for label, points in errors.items():
        if points:
            axis.plot(*zip(*points, strict=True), marker=".", label=label)
    axis.set(xlabel="sampling step", ylabel="relative error of the final tokens", yscale="log")


PLOTS = {"pareto": plot_pareto, "telemetry": plot_telemetry}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument("plot", choices=tuple(PLOTS))
    parser.add_argument("record", type=Path, help="record.json of a sampling command")
    parser.add_argument("--out", type=Path, required=True, help="PNG, PDF or SVG to write")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--out {args.out} must end in .png, .pdf or .svg")
    rows = read_rows(args.record)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    PLOTS[args.plot](axis, rows)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    with written_whole(args.out) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
    print(args.out)


if __name__ == "__main__":
    run_command(main)
