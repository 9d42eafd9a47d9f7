"""Plots from a record of a sampling command: quality against cost, and the forecast error at every full step."""

from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.forms import PSNR
from seerkit.command.cli import Parser, run_command
from seerkit.io.files import writable_file, written_whole
from seerkit.io.records import positive, read_record
from seerkit.io.tables import psnr_cell

EXAMPLES = """
python eval/plot.py pareto outputs/dit/fashion-mnist/record.json --out pareto.png
python eval/plot.py telemetry outputs/dit/fashion-mnist/record.json --out telemetry.png
"""


COMMAND = "a sampling command"
FORMS = {
    "pareto": {"rows": [{"label": str, "method": str, "flops_ratio": positive, "psnr": (None, PSNR)}]},
    "telemetry": {"rows": [{"label": str, "steps": (None, [{"step": int, "forecast_error": (None, float)}])}]},
}
"""What the plots read of a record. A row has no steps where a resumed run had nothing left to sample."""
SUFFIXES = (".png", ".pdf", ".svg")


def read_rows(path: Path, plot: str) -> list[dict[str, Any]]:
    """The rows of a record; UserError if the file is not one, or lacks what the plot needs."""
    return read_record(path, FORMS[plot], COMMAND)["rows"]


def plot_pareto(axis, rows: list[dict[str, Any]]) -> None:
    """PSNR to the uncached samples over the FLOPs ratio, one line per method."""
    compared = [row for row in rows if row.get("psnr")]
    if not compared:
        raise UserError("the record has no PSNR: sample with --compare")
    shown = [row for row in compared if row["psnr"]["mean_db"] is not None]
    same = [row["label"] for row in compared if psnr_cell(row["psnr"]) == "identical"]
    if not shown:
        raise UserError(f"samples of {', '.join(same)} are identical to the uncached ones: there is no PSNR to draw")
    for method in dict.fromkeys(row["method"] for row in shown):
        points = sorted((row["flops_ratio"], row["psnr"]["mean_db"]) for row in shown if row["method"] == method)
        axis.plot(*zip(*points, strict=True), marker="o", label=_plain(method))
    title = f"not drawn, as identical to the uncached samples: {', '.join(map(_plain, same))}" if same else ""
    axis.set(
        xlabel="FLOPs ratio, uncached / cached", ylabel="PSNR to the uncached samples, dB", title=title
    )  # fmt: skip


def plot_telemetry(axis, rows: list[dict[str, Any]]) -> None:
    """Relative error of the forecast that would have been used at each full step, one line per cache."""
    errors = {
        row["label"]: [
            (step["step"], step["forecast_error"])
            for step in row.get("steps") or ()
            if step.get("forecast_error") is not None
        ]
        for row in rows
    }
    if not any(errors.values()):
        raise UserError("the record has no telemetry: sample with --telemetry")
    for label, points in errors.items():
        if points:
            axis.plot(*zip(*points, strict=True), marker=".", label=_plain(label))
    axis.set(xlabel="sampling step", ylabel="relative error of the final tokens", yscale="log")


def _plain(label: str) -> str:
    """A label that matplotlib neither reads as mathematics nor, for an underscore in front, leaves out."""
    label = label.replace("$", r"\$")
    return f"\u200b{label}" if label.startswith("_") else label


PLOTS = {"pareto": plot_pareto, "telemetry": plot_telemetry}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    data = parser.section("data")
    data.add_argument(
        "plot", choices=tuple(PLOTS), help="quality against cost, or the forecast error at every full step"
    )
    data.add_argument("record", type=Path, help="record.json of a sampling command")
    parser.section("output").add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="PNG, PDF or SVG to write"
    )
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"--out {args.out} must end in .png, .pdf or .svg")
    rows = read_rows(args.record, args.plot)
    writable_file(args.out)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    PLOTS[args.plot](axis, rows)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    with written_whole(args.out) as temporary:
        figure.savefig(temporary, format=args.out.suffix[1:].lower(), dpi=130, bbox_inches="tight")
    print(args.out)


if __name__ == "__main__":
    run_command(main)
