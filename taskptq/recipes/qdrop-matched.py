"""QDrop that starts from the roundings of gptq-matched.

A unit whose loss training did not lower keeps the solved ones.
"""

base = 'qdrop-depthwise'
reconstruction = dict(
    start='gptq',
    match_float=True,
    output_ranges=True,
    bias_correction=True,
    position_weights=True,
    gptq_damping=0.1,
    # Solved roundings need a few changes, not a search.
    weight_lr=0.05,
    skip_below=0.0,
)
