"""Tokenizers of signals that are neither images nor audio: graphs, meshes, features of video, mixed media."""
