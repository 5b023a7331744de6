"""QDrop on the ground of ours-s: what its statistics alone change."""

base = ['qdrop', '_ours-ground']
