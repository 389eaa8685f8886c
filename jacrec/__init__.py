"""jacrec: a policy that thinks before each action."""
