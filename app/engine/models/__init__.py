"""The models that the engine can compute."""
