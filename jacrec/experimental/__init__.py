"""Options that the studies have not shown to pay. They are handed in; the core does not import them."""
