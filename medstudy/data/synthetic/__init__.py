"""Synthetic cases and the pretraining corpus: seeded, offline, no patient behind any of them."""
