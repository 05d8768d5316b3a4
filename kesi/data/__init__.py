"""Data sets as uint8 tensors, and batches of them, augmented on the device."""

from kesi.data.arrays import split_of
from kesi.data.batches import TrainBatches, eval_batches
from kesi.data.datasets import Dataset, load
from kesi.data.registry import DATASETS, INFO, DatasetInfo, register_dataset
from kesi.data.split import Images, Split

__all__ = ["DATASETS", "INFO", "Dataset", "DatasetInfo", "Images", "Split", "TrainBatches",
           "eval_batches", "load", "register_dataset", "split_of"]
