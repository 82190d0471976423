"""From predictions to numbers and verdicts."""
