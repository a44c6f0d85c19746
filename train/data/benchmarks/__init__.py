"""Benchmarks of the data pipeline: a module for each kind of task, and what they share."""
