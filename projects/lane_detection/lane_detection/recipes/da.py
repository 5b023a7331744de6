"""Distribution alignment of Q-DETR, for LSTR, with qdrop-decoder's steps."""

base = ['qdrop-decoder', '_aligned']
