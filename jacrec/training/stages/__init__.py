"""One module per trained part: ReBRAC, world models, reward model."""
