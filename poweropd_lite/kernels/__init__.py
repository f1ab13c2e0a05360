"""Triton kernels of the hot loops, each beside the plain torch code that it is held to; never needed."""
