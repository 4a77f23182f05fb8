"""Image tokenizers (two- and one-dimensional) and projectors into CLIP token space, one file per family."""
