"""The evidence for LoopSeer: what it is compared with at equal operations, on samples that no calibration has seen, and by how
much it differs sample by sample."""
