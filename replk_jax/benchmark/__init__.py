"""How fast things run here: a network, or the depthwise convolution alone.

Every figure is taken in one process with its peers, in turns; `timing` says how.
"""
