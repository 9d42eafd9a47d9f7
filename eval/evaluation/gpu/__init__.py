"""Times and memory of every backbone at its published size on one device, in slices that can be resumed."""
