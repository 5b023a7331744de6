"""gptq-matched, and a few tensors with more bits where it hurts."""

base = 'gptq-matched'
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
    budget=dict(macs_above=0.05),
    candidates=[8, 16, 'float'],
)
