"""Checks of parity fixtures that go beyond one tokenizer."""
