"""Training stages: ReBRAC, the world model and the reward model."""
