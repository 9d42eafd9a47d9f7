"""Scores of finished samples: sets of images or videos, what is read of each sample once, and the measures made of that."""
