"""Config, weights, KV cache, forward pass, sampler and the generate loop."""
