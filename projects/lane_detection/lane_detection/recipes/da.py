"""Distribution alignment of Q-DETR, for LSTR, with gptq-decoder's steps."""

base = ['gptq-decoder', '_aligned']
