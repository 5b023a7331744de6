"""What no image changes is computed once first.

Exact; see ConstantBranch.
"""

rewrites = [dict(type='ConstantBranch')]
