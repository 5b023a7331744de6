"""Parts of a model that no image changes, computed once."""

from taskptq.methods.constant_branch.rewrite import ConstantBranch

__all__ = ['ConstantBranch']
