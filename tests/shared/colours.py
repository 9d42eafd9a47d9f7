"""How well colours of a page are told apart."""

from collections.abc import Sequence

import numpy as np


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """WCAG 2's ratio of two sRGB colours."""

    def luminance(colour: Sequence[int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.asarray(colour) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
