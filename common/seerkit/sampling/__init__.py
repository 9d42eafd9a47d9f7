"""What samplers share: checks of settings, flow-matching solvers, seeds, runs with several caches, operations."""
