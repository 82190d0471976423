"""From a study's folder to executed notebooks."""
