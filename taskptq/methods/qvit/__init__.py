"""Q-ViT: distil the similarities between tokens in attention."""

from taskptq.methods.qvit.gram import GramLoss, gram_distance, normalized_gram

__all__ = ['GramLoss', 'gram_distance', 'normalized_gram']
