"""Published tables, run again: what their rows are, how they are sampled and scored, and the tables of both figures."""
