"""What a whole study says: tasks × training seeds × contestants, read from its folder, beside the paper's numbers."""
