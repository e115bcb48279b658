"""The model families that are served: what their configs may say, what that means, which tensors they have.

Free of torch, because the server asks here while the weights wait for its answer; the engine asks here, too.
"""
