"""Fused twins of the engine's operations, imported as ``jacrec.kernels``: same stem, arguments and returns."""
