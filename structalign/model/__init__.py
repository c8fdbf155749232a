"""Model: CLIP, its adapters, and the retriever made of them."""
