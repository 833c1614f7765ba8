"""What loading a model reads: configurations, the dense tensors, and what the model's own code says of them."""
