"""A GPU's small kernels, written in Triton: what is computed between two matrix products.

The modules `triton_*` hold the programs, the others their launches with plain types. No launch's shape depends on a
value on the GPU, so all of them can be captured in CUDA graphs. Importing this takes half a second, which nothing
before the first token may wait for. Nobody here knows a module, a sequence or a graph.
"""
