"""Networks by name, and their weights on disk."""

from .registry import MODELS, build_model, parameter_count
from .weights import load_checkpoint, save_weights
