"""One HTML page on quantized models: what it shows, measured and drawn."""
