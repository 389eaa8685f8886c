"""What is learned: networks, world models (`dynamics`), and how they are stored."""
