"""Queries of LSTR's decoder are standardized, scaled and shifted (Q-DETR)."""

qconfig = dict(
    overrides=[
        dict(
            pattern=r're:head\.decoder\.layers\.\d+\.\w+_attn(\.attn)?',
            query=dict(type='AlignedQuantizer'),
        )
    ]
)
