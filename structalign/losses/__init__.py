"""The loss terms: pure functions of tensors."""
