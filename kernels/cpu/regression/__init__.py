"""Steps of least-squares regression, for world and reward models, in compiled code."""
