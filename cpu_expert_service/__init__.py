"""The CPU expert service: computes the experts that are not on the GPU, in the memory that holds their weights."""
