"""Quantizers of every recipe.

Weights per output channel and asymmetric, as in PTQ4SAM, activations per
tensor. What PTQ4SAM leaves float stays float in every recipe, so that recipes
differ by their method alone; a change of ``keep_float`` switches entries on
or off.
"""

qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        per_channel=True,
        observer=dict(type='MSEObserver'),
    ),
    activation=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        observer=dict(type='MSEObserver'),
    ),
    edge_bits=None,
    keep_float=[
        # One pattern for both: a model without a detector has no layer that
        # the first could match, which would be an error.
        r're:(detector|sam\.image_encoder\.patch_embed)\..*',
        'sam.mask_decoder.output_upscaling*',
        'sam.mask_decoder.output_hypernetworks_mlps*',
        'sam.mask_decoder.iou_prediction_head*',
        'sam.prompt_encoder.mask_downscaling*',
    ],
)
