"""A custom node of ComfyUI: forecast caching on its models. ComfyUI loads this folder from custom_nodes by its path."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
