"""Parameters: their schema and how it is read."""
