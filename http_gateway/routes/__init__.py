"""The endpoints: each reads a request, calls the GPU service, and answers."""
