"""Queries of the decoder's attentions are standardized, scaled and shifted.

Deformable cross-attention has no queries that meet keys: there only
self-attention is aligned.
"""

qconfig = dict(
    overrides=[
        dict(
            pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
            query=dict(type='AlignedQuantizer'),
        )
    ]
)
