"""Experiments of many runs: what they consist of, running what is not done yet, what came of it."""
