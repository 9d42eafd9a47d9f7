"""Tables of the diffusers front: in which form each transformer is kept, and which settings are those of diffusers' hooks."""

import ast
import importlib
import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import Any

from seerkit.io.tables import markdown_table

TESTS = Path(__file__).resolve().parents[2] / "tests"
TINY = TESTS / "shared" / "tiny_pipelines.py"
DECISIONS = TESTS / "taylorseers_diffusers" / "test_decisions.py"


def transformers(_: Path) -> str:
    """A row for each class."""
    classes = importlib.import_module("taylorseers_diffusers.classes")
    models = _tiny_models()
    sites = classes.kept_sites(model.transformer for model in models)
    pipelines: dict[str, dict[str, None]] = defaultdict(dict)
    for model in models:
        name = type(model.pipe).__name__
        pipelines[type(model.transformer).__name__]["a loop" if name == "Loop" else name] = None
    rows = []
    for one in sorted(
        classes.listed(), key=lambda one: (one.form != classes.SITE, one.form == classes.REFUSED, one.name)
    ):
        of_blocks = [sites.get((one.name, block)) or sites.get(("", block), ()) for block in one.blocks]
        kept = "; ".join(filter(None, dict.fromkeys(map(", ".join, of_blocks))))
        cells = {classes.SITE: kept, classes.REFUSED: "–"}
        tested = ", ".join(pipelines[one.name]) or "–"
        rows.append([f"`{one.name}`", one.form, cells.get(one.form, "what all blocks add"), tested, one.note])
    return markdown_table(["transformer", "form", "what is kept", "tested with", ""], rows, left=(0, 1, 2, 3, 4))


def _tiny_models() -> list[Any]:
    """Those of the tests."""
    spec = importlib.util.spec_from_file_location("tiny_pipelines", TINY)
    assert spec is not None, "a file of this repository"
    assert spec.loader is not None, "a file of this repository"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [make() for make in module.ALL.values()]


def hooks(_: Path) -> str:
    """The settings that the tests hold to diffusers' hooks, as those have them in their docstring."""
    said = ast.get_docstring(ast.parse(DECISIONS.read_text(encoding="utf-8"))) or ""
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))
