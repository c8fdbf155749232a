"""The tiny CLIP of the built-in benchmark: its weights, and how they were trained on still images."""
