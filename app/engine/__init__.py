"""The engine process: knows tokens and tensors, neither text nor HTTP. The only place that imports torch."""
