"""PTQ4SAM (Lv et al., CVPR 2024): bimodal integration and AGQ.

Learned on top of QDrop.
"""

base = ['qdrop', '_agq', '_big']
