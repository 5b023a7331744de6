"""The fewest bit operations that keep the score, from 4, 8 and 16 bits."""

base = 'mse-depthwise'
mixed_precision = dict(
    # Softmax outputs of many keys lie near 0, between few codes.
    cures=[
        dict(
            softmax=dict(
                type='power_of_two', tau=2, observer='attention_output'
            )
        )
    ],
    keep=0.99,
    candidates=[4, 8, 16],
    reconstruction=dict(rounding='gptq'),
)
