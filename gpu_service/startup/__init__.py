"""Makes what is served: model, experts, chunk sizes, device memory; and the dry run."""
