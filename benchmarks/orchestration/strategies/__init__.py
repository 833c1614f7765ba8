"""Ways to serve a model whose experts do not fit on the GPU: each file says where its behaviour is published."""
