"""The CPU expert service: computes the experts that are not on the GPU, where their weights lie."""
