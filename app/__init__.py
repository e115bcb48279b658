"""Coldstream's server and engine: an OpenAI-compatible API over weights that `streaming` lands."""
