"""Offline data sets: generate, download, load and describe them, or build one from arrays."""

from jacrec.data.behaviour.make import MadeDataset, make_dataset
from jacrec.data.catalog import DatasetDescription, DatasetSummary, describe, list_datasets
from jacrec.data.download import get
from jacrec.data.readers.arrays import from_arrays
from jacrec.data.readers.load import load
from jacrec.data.transitions import DatasetInfo, Statistics, Transitions

__all__ = [
    "DatasetDescription",
    "DatasetInfo",
    "DatasetSummary",
    "MadeDataset",
    "Statistics",
    "Transitions",
    "describe",
    "from_arrays",
    "get",
    "list_datasets",
    "load",
    "make_dataset",
]
