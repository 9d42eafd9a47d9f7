"""Bounds that flags and samplers share; needs no torch."""

MAX_GUIDANCE = 10**9
"""Of guidance weights and shifts, in either direction: a thousand times as much still is a number in float32."""
