"""OpenAI's API: the form of its requests, what they are to the GPU service, and the form of its answers."""
