"""Print, one per line, what pyproject.toml asks for with the given extras and this environment does not have.

usage: unmet_requirements.py EXTRA,EXTRA. It prints nothing where all is met. setup.sh asks it about environments that
it did not make, and about every one that it has installed into. Direct requirements are compared by their versions.
"""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def unmet(project: dict, extras: list[str]) -> Iterator[str]:
    """Requirements of the project and its extras, each expanded where it names the project itself, that are not met."""
    from packaging.requirements import Requirement

    waiting = [*project["dependencies"], f"{project['name']}[{','.join(extras)}]"]
    seen = set()
    while waiting:
        line = waiting.pop(0)
        if line in seen:
            continue
        seen.add(line)
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            for extra in sorted(requirement.extras):
                waiting += project["optional-dependencies"][extra]
        elif requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                yield f"{line} (not installed)"
            else:
                if not requirement.specifier.contains(version, prereleases=True):
                    yield f"{line} (has {version})"


def not_from_here(config: dict) -> Iterator[str]:
    """Top-level packages of the source roots that an import would not take from this checkout."""
    for root in config["tool"]["setuptools"]["packages"]["find"]["where"]:
        for init in sorted((ROOT / root).glob("*/__init__.py")):
            name = init.parent.name
            spec = util.find_spec(name)
            if spec is None or spec.origin is None or Path(spec.origin).resolve() != init:
                yield f"{name} of this checkout"


def misfit() -> Iterator[str]:
    """torchvision, where it is another build than torch's.

    A CUDA build beside a CPU build satisfies every requirement, yet neither it nor what imports it can be imported.
    """
    try:
        torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return
    if torch.partition("+")[2] == torchvision.partition("+")[2]:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):
        yield f"a torchvision of the same source as torch {torch} (has {torchvision}): reinstall both from one"


def main() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known = config["project"]["optional-dependencies"]
    extras = sys.argv[1].split(",") if len(sys.argv) == 2 else []
    if not extras or not known.keys() >= set(extras):
        sys.exit(f"usage: unmet_requirements.py EXTRA,EXTRA with extras of {', '.join(known)}")
    if util.find_spec("packaging") is None:
        print("packaging (not installed)")
        return
    for line in (*unmet(config["project"], extras), *not_from_here(config), *misfit()):
        print(line)


if __name__ == "__main__":
    main()
