"""The GPU service: runs the transformer loop and asks the CPU expert service for the experts it does not hold."""
