"""From cases to trained adapters and their answers."""
