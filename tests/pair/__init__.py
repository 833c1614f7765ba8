"""The launcher of both services."""
