"""A custom node of ComfyUI: forecast caching on its models. ComfyUI loads this folder from custom_nodes by its path."""

from pathlib import Path

try:
    import cache_dic  # noqa: F401
    import taylorseers_diffusers  # noqa: F401
except ModuleNotFoundError as error:
    root = Path(__file__).resolve().parents[3]  # of the repository, unless the folder was copied
    raise ModuleNotFoundError(
        f"{error}; it is of the repository that this node comes with, so install that into ComfyUI's Python: "
        f"pip install --no-deps -e {root if (root / 'pyproject.toml').is_file() else 'ROOT-OF-THE-REPOSITORY'}"
    ) from error

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
