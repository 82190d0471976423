"""How the demo study's cases and its two base models were made. Nothing in medstudy/ imports it."""
