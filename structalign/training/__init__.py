"""Training one task."""
