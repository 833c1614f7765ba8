"""`python -m benchmarks.routing`: a pair through a change of topic, and the pictures drawn from its metrics."""
