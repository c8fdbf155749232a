"""Methods: losses, geometry, memory, and the continual-learning methods built from them."""
