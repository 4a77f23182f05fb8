"""Textual inversion: images as pseudo-words in the token space of a CLIP text encoder."""
