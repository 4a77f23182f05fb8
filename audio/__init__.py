"""Neural audio codecs and speech units, one file per family."""
