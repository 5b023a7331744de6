"""GPTQ towards the float model's outputs, in ranges of least output error.

As gptq-depthwise, but each layer is fitted on the inputs that it gets from
the quantized layers before it, so that it makes up for their errors.
"""

base = 'gptq-depthwise'
reconstruction = dict(
    match_float=True,
    output_ranges=True,
    bias_correction=True,
    # Less shrinkage fits the calibration images, not the next ones.
    gptq_damping=0.1,
)
