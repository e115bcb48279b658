"""From logits to the next tokens: constraints, penalties, draws and logprobs, on the model's device."""
