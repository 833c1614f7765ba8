"""Other engines on the same weights and the same machine."""
