"""Distribution alignment of Q-DETR (Xu et al., CVPR 2023), on QDrop.

Queries of the decoder's attentions are standardized, scaled and shifted
before they are quantized.
"""

base = ['qdrop', '_aligned']
