"""Readers for D4RL files, Minari data sets and plain arrays."""
