"""The gradient of Theorem 4.1 and the decision that follows, in one compiled call."""
