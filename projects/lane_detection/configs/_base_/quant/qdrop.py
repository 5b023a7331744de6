# QDrop (Wei et al., ICLR 2022): as brecq.py, with half of the activations
# left float at random while a block learns.
_base_ = ['../../../../../configs/_base_/quant/qdrop.py']
