"""Metrics and everything else that is measured after a task."""
