"""QDrop on top of ours-s, to show the effect of its statistics."""

base = ['qdrop', '_ours-ground']
