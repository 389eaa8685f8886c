"""Environments: D4RL's contact physics, AntMaze, and parallel episodes."""
