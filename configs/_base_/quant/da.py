# Distribution alignment (DA of Q-DETR, Xu et al., CVPR 2023): queries of the
# decoder's attentions are standardized, scaled and shifted before they are
# quantized. Deformable cross-attention has no queries that meet keys: there
# only self-attention is aligned. Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    overrides=[
        dict(
            pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
            query=dict(type='AlignedQuantizer'),
        )
    ]
)
