"""Algorithm 1 and the controller around it."""
