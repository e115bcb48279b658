"""Fetched ranges on a local disk: which there are, whether they are whole, and which have to go."""
