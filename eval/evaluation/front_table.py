"""The table of diffusers' transformers: in which form each is kept, and what it is tested with."""

import importlib.util
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

from seerkit.io.tables import markdown_table

TINY = Path(__file__).resolve().parents[2] / "tests" / "shared" / "tiny_pipelines.py"


def transformers(_: Path) -> str:
    """A row for each class."""
    from taylorseers_diffusers.classes import REFUSED, SITE, listed
    from taylorseers_diffusers.forms import form_of, proper
    from taylorseers_diffusers.passes import Passes

    sites: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)  # by transformer and block, and by block
    pipelines: dict[str, list[str]] = defaultdict(list)
    for model in _tiny_models():
        name = type(model.transformer).__name__
        for block in Passes(model.transformer).blocks:
            for key in (name, type(proper(block)).__name__), ("", type(proper(block)).__name__):
                sites[key] |= dict.fromkeys(feature.name for feature in form_of(block).sites)
        pipelines[name].append(type(model.pipe).__name__)
    rows = []
    for one in listed():
        by_block = dict.fromkeys(", ".join(sites.get((one.name, b)) or sites.get(("", b), {})) for b in one.blocks)
        kept = {SITE: "; ".join(filter(None, by_block)), REFUSED: "–"}.get(one.form, "what all blocks add")
        tested = ", ".join(dict.fromkeys("a loop" if name == "Loop" else name for name in pipelines[one.name]))
        form = f"{one.form}: {one.note}" if one.form == REFUSED else one.form
        rows.append([f"`{one.name}`", form, kept, tested or "–", one.note if one.form == SITE else ""])
    order = {SITE: 0, "stack": 1}
    rows.sort(key=lambda row: order.get(row[1], 2))
    return markdown_table(["transformer", "form", "what is kept", "tested with", "but"], rows, left=(0, 1, 2, 3, 4))


def _tiny_models() -> list[Any]:
    """Those of the tests."""
    spec = importlib.util.spec_from_file_location("tiny_pipelines", TINY)
    assert spec is not None, "a file of this repository"
    assert spec.loader is not None, "a file of this repository"
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [make() for make in module.ALL.values()]
