"""Offline data: make it, load it, look at it."""

from jacrec.data.catalog import DatasetDescription, DatasetSummary, describe, list_datasets
from jacrec.data.load import load
from jacrec.data.make import MadeDataset, make_dataset
from jacrec.data.transitions import DatasetInfo, Statistics, Transitions

__all__ = [
    "DatasetDescription",
    "DatasetInfo",
    "DatasetSummary",
    "MadeDataset",
    "Statistics",
    "Transitions",
    "describe",
    "list_datasets",
    "load",
    "make_dataset",
]
