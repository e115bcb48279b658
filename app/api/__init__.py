"""The OpenAI-compatible HTTP surface. Knows HTTP, not tensors."""
