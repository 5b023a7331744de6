"""mse-depthwise; GPTQ and up to 3 % of products above where it hurts."""

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
    budget=dict(macs_above=0.03),
    candidates=[8, 16, 'float'],
    reconstruction=dict(rounding='gptq'),
)
