"""Models by name: in the Hugging Face cache, or downloaded into it. Imports neither torch nor grpc."""
