"""Files of weights: found, checked, loaded, converted between layouts."""
