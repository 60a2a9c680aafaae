"""Objective benchmarks by lm-eval: its tasks, their data, and its questions to an engine of ours."""
