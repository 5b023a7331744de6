"""DB-LLM: weigh samples by how ambiguous they are to the teacher."""

from taskptq.methods.db_llm.ambiguity import (
    ambiguity_weights,
    binary_entropy,
    class_entropy,
)

__all__ = ['ambiguity_weights', 'binary_entropy', 'class_entropy']
