"""One page of all records: tables that sort and filter, plots, the conditions of every number, and what was not run.

The page needs no server and no network. Pages of runs are linked where folders of runs are named or there are some in
outputs/; records of kinds that are not known are listed with their conditions.
"""

from pathlib import Path

from cache_dic import UserError
from seerkit.command.cli import Parser, run_command
from seerkit.io.files import writable_file

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
python eval/report.py
python eval/report.py --out report/index.html
python eval/report.py --runs outputs/flux outputs/compare
python eval/report.py --results my-results --out my-report
"""
PAGE = "index.html"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    data = parser.section("data")
    data.add_argument(
        "--results", type=Path, metavar="DIR", help="folder of the records (default: results/ of the repository)"
    )
    data.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders in which pages of runs are looked for (default: outputs/ of the repository)",
    )
    parser.section("output").add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        default=Path("outputs/report"),
        help=f"page to write, or a folder for {PAGE}",
    )
    args = parser.parse_args(argv)
    results = args.results or ROOT / "results"
    for folder in (results, *(args.runs or [])):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name one that is there")
    out = writable_file(args.out if args.out.suffix == ".html" else args.out / PAGE)

    from evaluation.report_page import write_report

    runs = [ROOT / "outputs"] if args.runs is None else args.runs
    told = write_report(results, out, [folder for folder in runs if folder.is_dir()])
    print(", ".join(f"{count} {what}" for what, count in told.items()))
    print(f"page: {out}")


if __name__ == "__main__":
    run_command(main)
