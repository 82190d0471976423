"""From a data card to cases in disjoint splits."""
