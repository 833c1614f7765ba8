"""How the tensors of one naming hold a layer's experts: a module for each layout, which makes views of them.

None of these modules opens a file or reads a weight.
"""
