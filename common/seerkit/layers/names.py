"""Names of interchangeable parts, as flags have them; needs no torch."""

ATTENTION_BACKENDS = ("sdpa", "flash", "flash4", "reference")
