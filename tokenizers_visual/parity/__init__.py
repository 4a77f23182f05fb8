"""Checks of parity fixtures that go beyond one tokenizer: adversaries and whole training losses."""
