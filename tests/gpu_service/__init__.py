"""Tests of the GPU service's parts, in this process."""
