"""The evaluation commands where the locale is not UTF-8: what they print, the names of files, and what is in them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = "# Größe\n\n<!-- table:flux-op-counts -->\n<!-- /table -->\n"


@pytest.mark.slow
def test_commands_where_the_locale_is_not_utf8(tmp_path):
    """Each writes and reads what it should, in a folder with a name beyond the locale."""
    folder = tmp_path / "größe 像"
    (folder / "dit").mkdir(parents=True)
    shutil.copytree(ROOT / "results" / "flux", folder / "flux")
    (folder / "README.md").write_text(README, encoding="utf-8")
    psnr = {"mean_db": 30.0, "num_images": 1, "num_identical": 0}
    row = {"label": "größe", "method": "größe", "flops_ratio": 2.0, "psnr": psnr}
    (folder / "record.json").write_text(json.dumps({"rows": [row]}, ensure_ascii=False), encoding="utf-8")
    commands = [
        ["ascii", "tables.py", "--results", folder, "--readme", folder / "README.md"],
        ["latin-1", "tables.py", "--results", folder, "--print", "flux-samples"],
        ["ascii", "flops.py", "--model", "debug", "--out", folder / "zählung.json"],
        ["latin-1", "plot.py", "pareto", folder / "record.json", "--out", folder / "bild.png"],
    ]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    for encoding, name, *flags in commands:
        environment["PYTHONIOENCODING"] = encoding
        done = subprocess.run(
            [sys.executable, ROOT / "eval" / name, *flags], env=environment, capture_output=True, check=False
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode(errors="replace")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Größe\n\n<!-- table:flux-op-counts -->\n| a forecast step of |")
    assert len(json.loads((folder / "zählung.json").read_text(encoding="utf-8"))["rows"]) == 1
    assert (folder / "bild.png").stat().st_size > 1000
    wrong = subprocess.run(
        [sys.executable, ROOT / "eval" / "plot.py", "pareto", folder / "größe.json", "--out", "x.png"],
        env=environment, capture_output=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (wrong.returncode, wrong.stderr.count(b"\n")) == (2, 1)
