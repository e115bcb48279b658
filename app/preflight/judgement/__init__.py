"""Findings from figures: pure, so that a machine that nobody has can be judged in a test."""
