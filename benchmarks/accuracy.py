"""Does a network that is trained here become as good as one that PyTorch's and torchvision's own tools train
with the same recipe?

    python benchmarks/accuracy.py PROFILE NETWORK [--role student|teacher] [--seeds 3] [--json FILE]

The one side are the profile's records of the network alone. The other is trained now, in the plainest way:
PIL transforms, a DataLoader, fp32, SGD, MultiStepLR; nothing of this project's loop, loader or augmentation,
only the same images and the same network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from textbook import Pictures
from torch import nn
from torch.utils.data import DataLoader

from pursuhint_lib import records
from pursuhint_lib.data import DataError, describe, load_splits
from pursuhint_lib.files import write_json
from pursuhint_lib.models import build_model
from pursuhint_lib.progress import Progress
from pursuhint_lib.records import provenance
from pursuhint_lib.settings import Data, Profile, Schedule, SettingsError, choose
from pursuhint_lib.study.grid.cells import cell_settings
from pursuhint_lib.study.grid.profiles import load_profile

WORKERS = 1


def accuracies_on_record(profile: Profile, network: str, role: str) -> list[float]:
    """Test accuracies (%) of the network alone, of every seed that has a record."""
    if role == "teacher":
        runs = [profile.teacher_settings(network, seed) for seed in profile.seeds]
    else:
        pair = next(pair for pair in profile.pairs if pair.student == network)
        cells = [cell_settings(profile, pair, "ce", seed, {}) for seed in profile.seeds]
        runs = [cell.run(cell.arms[0]) for cell in cells]
    found = [
        record.metrics["accuracy"]
        for run in runs
        if (record := records.load(profile.name, run)) and record.status == "ok"
    ]
    if not found:
        raise SettingsError(
            f"{profile.name} has no record of {network} alone; run ./run_all.sh {profile.name} first"
        )
    return found


def train_plainly(network: str, data: Data, schedule: Schedule, seed: int) -> float:
    """Test accuracy (%) after the last epoch of a network trained with PyTorch's and
    torchvision's own tools.
    """
    torch.manual_seed(seed)
    entry, splits = describe(data), load_splits(data, torch.device("cpu"))
    model = build_model(network, entry.classes, entry.channels).train()
    loader = DataLoader(
        Pictures(splits.train.images, splits.train.labels, entry),
        schedule.batch_size,
        shuffle=True,
        num_workers=WORKERS,
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        schedule.learning_rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, schedule.milestones, schedule.decay)
    with Progress(f"{network}, plainly, seed {seed}", schedule.epochs, "epoch") as progress:
        for _ in range(schedule.epochs):
            for images, labels, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            rates.step()
            progress.advance()
    return accuracy(model.eval(), splits.test.images, splits.test.labels, entry)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, entry) -> float:
    """Share of test images (uint8 [N, C, H, W]) that are classified rightly, in %."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (entry.mean, entry.std))
    right = sum(
        (model((batch / 255 - mean) / std).argmax(1) == truth).sum().item()
        for batch, truth in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(labels)


def measure(profile: Profile, network: str, role: str, seeds: int) -> dict:
    """Both sides' accuracies, and the difference of their means with Welch's 95 % interval."""
    here = accuracies_on_record(profile, network, role)
    data, schedule = (
        (profile.data, profile.teacher) if role == "teacher" else (profile.student_data, profile.student)
    )
    plain = [train_plainly(network, data, schedule, seed) for seed in range(seeds)]
    result = {
        "profile": profile.name,
        "network": network,
        "role": role,
        "here": here,
        "plain": plain,
        "difference": np.mean(here) - np.mean(plain),
    }
    if min(len(here), len(plain)) > 1:
        low, high = stats.ttest_ind(here, plain, equal_var=False).confidence_interval()
        result |= {"low": low, "high": high}
    return {key: float(value) if isinstance(value, np.floating) else value for key, value in result.items()}


def report(result: dict) -> str:
    """The comparison in words."""
    sides = [
        f"{what}: {np.mean(found):.2f} % ({', '.join(f'{a:.2f}' for a in found)})"
        for what, found in (("here", result["here"]), ("plainly", result["plain"]))
    ]
    interval = f", 95 % interval {result['low']:+.2f} to {result['high']:+.2f}" if "low" in result else ""
    return (
        f"{result['network']} alone, {result['profile']}, test accuracy\n"
        + "\n".join(sides)
        + f"\ndifference {result['difference']:+.2f} pp{interval}"
    )


def main(arguments: Sequence[str]) -> int:
    """Train and compare; exit status 2 and one line for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="a name in config/ or a YAML file of your own")
    parser.add_argument("network", help="a student or teacher of its pairs")
    parser.add_argument(
        "--role",
        choices=("student", "teacher"),
        default="student",
        help="whose recipe and images (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="networks to train plainly (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file, too")
    options = parser.parse_args(arguments)
    try:
        profile = load_profile(options.profile)
        choose(
            "network", options.network, dict.fromkeys(getattr(pair, options.role) for pair in profile.pairs)
        )
        if options.seeds < 1:
            raise SettingsError("give a number above 0 for --seeds")
        result = measure(profile, options.network, options.role, options.seeds)
    except (SettingsError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(result))
    if options.json:
        write_json(
            options.json,
            result
            | {
                "provenance": provenance(
                    torch.device("cpu"), load_splits(profile.data, torch.device("cpu")).checksum
                )
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
