"""Benchmarks of a pipeline: what it answers, what rivals would, and what the differences are worth."""
