"""StructAlign: continual text-to-video retrieval on a simplex equiangular tight frame."""
