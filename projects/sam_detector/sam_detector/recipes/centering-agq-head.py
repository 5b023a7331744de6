"""As centering-agq, with a granularity for each head.

Learned on top of QDrop.
"""

base = ['qdrop', '_agq', '_head', '_centered-keys']
