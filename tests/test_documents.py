"""The documents: links and paths exist, commands accept the flags shown, examples run, versions agree."""

import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "[!.]*/README.md", "integrations/*/README.md", "[!.]*/weights/README.md")
    for path in ROOT.glob(pattern)
]
BACKBONES = sorted(ROOT.glob("TaylorSeer-*/README.md"))
FRONTS = sorted(ROOT.glob("TaylorSeers-*/README.md"))
README_BYTES = 12288
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXAMPLE = re.compile(r"<!-- example -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"(?:scripts|eval|common|docs|tests|results|envs|\.ci|TaylorSeers?-[\w.]+)/[\w./*-]*")
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every(documents: list[Path] = DOCUMENTS):
    return pytest.mark.parametrize("path", sorted(documents), ids=name)


def code_of(text: str) -> Iterator[str]:
    """Lines of the blocks of commands and layouts, continued ones joined, and what stands between backticks in the text."""
    for language, block in FENCED.findall(text):
        if language in ("bash", ""):
            yield from block.replace("\\\n", "").splitlines()
    yield from INLINE.findall(FENCED.sub("", text))


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_reader_is_not_kept_long():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


@every()
def test_links_lead_somewhere(path):
    for link in LINK.findall(INLINE.sub("", FENCED.sub("", path.read_text(encoding="utf-8")))):
        if link.startswith(("https://", "http://")):
            continue
        target, _, fragment = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert not fragment or fragment in anchors(found), link


@every()
def test_paths_exist(path):
    for code in code_of(path.read_text(encoding="utf-8")):
        for place in PLACE.findall(code):
            assert "NAME" in place or any(ROOT.glob(place.rstrip("/."))), f"{place} in {code}"


def test_backbones_are_described_under_the_same_headings():
    headings = {
        name(path): re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) for path in BACKBONES
    }
    assert len(headings) == 5
    assert len(set(map(tuple, headings.values()))) == 1, headings


def test_every_document_is_linked_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall((ROOT / "README.md").read_text())}
    assert {*BACKBONES, *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"} <= linked


# -------------------------------------------------------------------------------------------------------------- commands


def command_of(code: str) -> tuple[str, str] | None:
    """The Python command that a line starts, and the arguments it gets; None where it starts none of ours."""
    started = re.match(
        r"(?:bash|python|torchrun(?: --\S+)*) ((?:scripts/(?:run|reproduce)_\w+\.sh)|(?:[\w./-]+\.py))(.*)",
        code.strip(),
    )
    if not started:
        return None
    script, arguments = started.groups()
    while script.endswith(".sh"):
        ends = re.search(r"^exec (?:python|bash) (\S+?\.(?:py|sh))\b", (ROOT / script).read_text(), re.MULTILINE)
        ends = ends or re.search(
            r'^exec bash "\$\(dirname "\$0"\)/(\S+?\.sh)"', (ROOT / script).read_text(), re.MULTILINE
        )
        if ends is None:
            return None  # it starts several
        script = ends[1] if "/" in ends[1] else f"scripts/{ends[1]}"
    return script, arguments.partition("#")[0]


@functools.cache
def help_of(script: str, *flags: str) -> str:
    wide = {**os.environ, "COLUMNS": "10000"}  # no flag is broken at its hyphens
    command = [sys.executable, ROOT / script, *flags, "--help"]
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=True)
    return re.sub(r"\s+", " ", done.stdout)


def flags_of(text: str) -> set[str]:
    """Flags in a text; a hyphen is as good as an underscore."""
    return {flag.replace("_", "-") for flag in FLAG.findall(text)}


COMMANDS = [
    found for path in DOCUMENTS for code in code_of(path.read_text(encoding="utf-8")) if (found := command_of(code))
]


def test_commands_are_found_in_documents():
    assert command_of("torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2") == (
        "TaylorSeer-DiT/sample_ddp.py",
        " --model DiT-XL/2",
    )
    assert command_of("bash scripts/run_wan.sh --resume  # text") == ("TaylorSeer-Wan2.1/generate.py", " --resume  ")
    folders = {"eval", *(path.parent.name for path in (*BACKBONES, *FRONTS))}
    assert {Path(script).parts[0] for script, _ in COMMANDS} == folders


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({script for script, _ in COMMANDS}))
def test_commands_accept_what_documents_show(script):
    accepted = flags_of(help_of(script))
    for arguments in {arguments for shown, arguments in COMMANDS if shown == script}:
        assert flags_of(arguments) <= accepted, arguments
        for model in re.findall(r"--model (\S+)", arguments):
            listed, _, _ = help_of(script).partition("examples:")
            if model not in listed:  # of any model's command, which lists a family: that of the model that is named
                listed, _, _ = help_of(script, "--model", model).partition("examples:")
            assert re.search(rf"[{{, ]{re.escape(model)}[,}} ]", listed), arguments


@pytest.mark.slow
def test_flags_exist():
    """Flags named in the text, of any command of ours that a document shows."""
    known = set().union(*(flags_of(help_of(script)) for script in {script for script, _ in COMMANDS}))
    for path in DOCUMENTS:
        text = FENCED.sub("", path.read_text(encoding="utf-8"))
        named = {flag for code in INLINE.findall(text) if code.startswith("--") for flag in flags_of(code)}
        assert named <= known, name(path)


# -------------------------------------------------------------------------------------------------------------- examples

EXAMPLES = [(path, code) for path in sorted(DOCUMENTS) for code in EXAMPLE.findall(path.read_text(encoding="utf-8"))]


def test_each_backbone_has_an_example():
    assert {path for path, _ in EXAMPLES} == {ROOT / "README.md", *BACKBONES}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "code"), EXAMPLES, ids=[name(path) for path, _ in EXAMPLES])
def test_examples_run(path, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(path), "exec"), names)
    (made,) = [names[kind] for kind in ("image", "images", "video") if kind in names]
    assert made.shape == names["noise"].shape
    assert made.isfinite().all()
    assert 0.05 < made.std() < 1.5, "a picture of pixels in about [-1, 1]"
    assert not torch.equal(made, names["noise"])


# -------------------------------------------------------------------------------------------------------------- versions


@pytest.fixture
def read_yaml(need) -> Callable[[str], dict]:
    """`read_yaml("CITATION.cff")`."""
    return lambda file: need("yaml").safe_load((ROOT / file).read_text(encoding="utf-8"))


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_the_changelog_begins_with_this_version():
    newest = re.search(r"^## ([\d.]+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == version()


def test_the_citation_is_that_of_this_version_and_of_the_paper(read_yaml):
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors", "license"}
    assert citation["version"] == version()
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Zou", "Lyu", "Chen", "Zhang"]
    assert paper["title"] in (ROOT / "README.md").read_text()


def test_pre_commit_has_the_pinned_ruff(read_yaml):
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert repository["rev"] == f"v{pinned[1]}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_workflow_runs_the_same_check(read_yaml):
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run", "bash scripts/test.sh -m slow"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
