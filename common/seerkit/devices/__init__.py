"""Where and how a model runs: processes, memory, number formats, compilation, clocks."""
