"""The codec `compact`: each id is coded by what a small integer network expects after the ids around it.

`contexts` says which ids stand around an id, `code_tree` how an id is a path of digits, `model` what is expected of a digit, `streams` how
digits become bytes, `lockstep` the same for sixteen rows at a time in machine code (`lockstep_kernels`, `edges_avx2`, `edges_plain`),
`torch_streams` the way back on a GPU, `fit` where the integers come from, `model_file` where they are kept, and `codec` what a shard holds.
"""
