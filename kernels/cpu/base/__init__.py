"""Tiles, layers, threads and the compiler: the building blocks of all CPU kernels."""
