"""As gptq-decoder, on the distortion of the lanes that queries are.

The lane distortion score through a soft decoding, whose gradient reaches the
head: see SoftDistortionLoss.
"""

base = 'gptq-decoder'
reconstruction = dict(
    loss=dict(_delete_=True, type='SoftDistortionLoss', by_query=True)
)
