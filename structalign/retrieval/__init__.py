"""Stored galleries, and the ranking of their videos for a query."""
