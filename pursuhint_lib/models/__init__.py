"""Networks by name, and their weights on disk.

``MODELS`` holds the CIFAR networks; ``torchvision/<name>`` and ``timm/<name>`` take any classifier of these
packages, and an import path (``my_networks:my_network``) a function or class of the user's own.
"""

from .registry import MODELS, build_model, load_checkpoint, parameter_count, save_weights
