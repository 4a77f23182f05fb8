"""Whole data sets to tokens, on one machine or many, and the datasets that read them."""

from zoo.bulk.datasets import IdDataset, Item, TokenDataset, TokenStream
from zoo.bulk.job import Job, Summary
from zoo.bulk.local import tokenize

__all__ = ["IdDataset", "Item", "Job", "Summary", "TokenDataset", "TokenStream", "tokenize"]
