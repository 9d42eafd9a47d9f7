"""Which measures mean something on the embedded models: each is held against real data and an order that is known."""
