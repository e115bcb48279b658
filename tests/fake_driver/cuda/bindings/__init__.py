"""Stands in for NVIDIA's package where a test must force what a real GPU will not do on demand."""
