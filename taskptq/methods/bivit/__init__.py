"""Bi-ViT: distil the order of attention."""

from taskptq.methods.bivit.ranking import RankingLoss, ranking_hinge

__all__ = ['RankingLoss', 'ranking_hinge']
