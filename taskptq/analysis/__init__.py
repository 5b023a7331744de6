"""Analysis of quantized models: errors, sensitivity, distributions."""
