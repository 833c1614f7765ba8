"""An HTTP server in front of the GPU service: OpenAI's API, a page to chat with the model, and the experts at work.

It is a process of its own, which calls the GPU service as any other client does.
"""
