"""Readers of D4RL, Minari and plain arrays."""
