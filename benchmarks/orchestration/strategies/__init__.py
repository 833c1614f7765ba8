"""Strategies for serving a model whose experts do not fit on the GPU. Each file names its published source."""
