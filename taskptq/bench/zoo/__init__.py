"""The zoo: quantized files that are listed, made, evaluated and checked."""
