"""Converting a checkpoint to 8 and 4 bits: how fast, and that it survives being killed."""
