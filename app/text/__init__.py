"""Text to token ids and back. Knows no HTTP, no engine and no torch."""
