"""Data: from raw videos and captions to tasks and stored frames."""
