"""How the tensors that a naming claimed become experts: one file per layout."""
