"""What tensors of GGUF types hold: their blocks as codes and scales, as floats, as counts; no arithmetic of models."""
