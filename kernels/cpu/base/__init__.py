"""Tiles, layers, threads and the compiler: what all CPU kernels are made of."""
