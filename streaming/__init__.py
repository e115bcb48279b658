"""Bytes to addresses: reads a safetensors checkpoint from a blob store into one arena of memory.

Knows nothing of HTTP serving, of torch, or of the environment: settings are handed in.
"""
