"""Teachers by name: what they are, where their weights come from, and whether the weights are what they claim
to be.

``TEACHERS`` holds the public CIFAR-100 teachers; ``torchvision/<network>/IMAGENET1K_V1`` names any of
torchvision's ImageNet ones. A teacher trained here gets its entry as a JSON file beside its weights.
"""

import fcntl
import json
import shutil
import socket
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from http.client import HTTPException
from pathlib import Path

import torch

from .files import replacing, sha256, write_json
from .paths import ROOT, manifest_entry, teacher_download, teacher_file, teachers_lock
from .progress import Progress
from .settings import SettingsError, build, choose, validated

# How far a teacher's measured accuracy may lie from its entry, in pp.
TOLERANCE = 0.1

TORCHVISION = "torchvision/"
# torchvision's DEFAULT changes from version to version, so the weights are named.
IMAGENET_WEIGHTS = "IMAGENET1K_V1"

TIMEOUT_SECONDS = 60


@validated
class Teacher:
    """What is known of a teacher's weights.

    **Arguments:**

    - ``name``: what a profile calls it.
    - ``network``: name for ``models.build_model``.
    - ``dataset``, ``classes``: what it was trained on, and the number of classes.
    - ``accuracy``: test top-1 in %.
    - ``mean``, ``std``: per channel, what its images were normalised with.
    - ``sha256``: of the checkpoint file, in hex digits; only the first ones, or none, where no more is
      published.
    - ``addresses``: where the file is, tried in order; none for a teacher trained here.
    - ``member``: path inside a tar archive, where the addresses lead to one.
    """

    name: str
    network: str
    dataset: str
    classes: int
    accuracy: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str = ""
    addresses: tuple[str, ...] = ()
    member: str = ""


def _cifar100(network: str, accuracy: float, sha256: str = "") -> Teacher:
    return Teacher(
        name=network,
        network=network,
        dataset="cifar100",
        classes=100,
        accuracy=accuracy,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        sha256=sha256,
        addresses=(
            "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar",
        ),
        member=f"cifar_teachers/{network}_vanilla/ckpt_epoch_240.pth",
    )


# The teachers of RepDistiller (Tian et al., arXiv 1910.10699), whose results table gives the accuracies. Its
# own server has them over plain http only; mdistiller publishes the same files. Neither gives checksums: that
# of resnet32x4 is in two repetitions of the study, one of which took the file from either place. For the
# others see ``fetch``.
TEACHERS: dict[str, Teacher] = {
    teacher.name: teacher
    for teacher in (
        _cifar100("wrn_40_2", 75.61),
        _cifar100("resnet56", 72.34),
        _cifar100("resnet110", 74.31),
        _cifar100("resnet32x4", 79.42, "22aa12e2b632b19ddde155ccf2388671842ddd304824b3095e0a7fff364beb4f"),
        _cifar100("vgg13", 74.64),
        _cifar100("ResNet50", 79.34),
    )
}


def teacher_entry(name: str) -> Teacher:
    """The manifest entry of a public teacher.

    **Arguments:** ``name`` in ``TEACHERS``, or ``torchvision/<network>/IMAGENET1K_V1``.

    **Raises:** ``SettingsError`` that names the nearest teacher there is.
    """
    if not name.startswith(TORCHVISION):
        return TEACHERS[choose("teacher", name, [*TEACHERS, f"{TORCHVISION}<network>/{IMAGENET_WEIGHTS}"])]
    # Here, since it takes two seconds, and most teachers are others.
    from torchvision import models

    published = [
        network
        for network in models.list_models(module=models)
        if IMAGENET_WEIGHTS in models.get_model_weights(network).__members__
    ]
    choose("teacher", name, [f"{TORCHVISION}{network}/{IMAGENET_WEIGHTS}" for network in published])
    network = name.split("/")[1]
    weights = models.get_model_weights(network)[IMAGENET_WEIGHTS]
    images = weights.transforms()
    return Teacher(
        name=name,
        network=f"{TORCHVISION}{network}",
        dataset="imagenet",
        classes=len(weights.meta["categories"]),
        accuracy=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        mean=tuple(images.mean),
        std=tuple(images.std),
        # The file names end in the first digits: resnet34-b627a593.pth.
        sha256=weights.url.rpartition("-")[2].partition(".")[0],
        addresses=(weights.url,),
    )


def locate(checkpoint: str) -> tuple[Path, Teacher | None]:
    """What a profile's ``checkpoints`` name: a public teacher, or a file, relative to the checkout. Nothing
    is downloaded.

    **Returns:** the checkpoint file, which may not be there yet for a public teacher, and its entry; a file
    of one's own need not have one.

    **Raises:** ``SettingsError`` when there is neither.
    """
    path = ROOT / checkpoint
    if path.is_file():
        return path, read_entry(path)
    if (path.suffix or "/" in checkpoint) and not checkpoint.startswith(TORCHVISION):
        raise SettingsError(
            f"no checkpoint at {path}; give a file that is there, or a public teacher: {', '.join(TEACHERS)}"
        )
    teacher = teacher_entry(checkpoint)
    return teacher_file(teacher.name), teacher


def find(checkpoint: str) -> tuple[Path, Teacher | None]:
    """As ``locate``, with the file there: a public teacher is fetched.

    **Raises:** ``SettingsError`` also when it cannot be fetched, or when the file is not what its entry says.
    """
    path, entry = locate(checkpoint)
    if entry and entry.addresses:
        return fetch(entry), entry
    if difference := entry and _difference(path, path):
        raise SettingsError(
            f"{path} has changed: {difference}; put the weights back that were there, or remove both files"
        )
    return path, entry


def check_entry(
    teacher: Teacher, network: str, dataset: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Refuse a teacher that does not fit the study.

    **Arguments:** the study's network, data set, and normalisation per channel.

    **Raises:** ``SettingsError`` saying what is wrong and what would be right.
    """
    learnt, here = ([list(values) for values in pair] for pair in ((teacher.mean, teacher.std), (mean, std)))
    for fits, how in (
        (
            teacher.network == network,
            f"is a {teacher.network}, not a {network}; give a checkpoint of {network}",
        ),
        (
            teacher.dataset == dataset,
            f"learnt {teacher.dataset}, and the study is on {dataset}; give one that learnt {dataset}",
        ),
        (
            learnt == here,
            f"learnt images normalised with mean {learnt[0]} and std {learnt[1]}, and {dataset} has mean "
            f"{here[0]} and std {here[1]} here; give a teacher that learnt images normalised like that",
        ),
    ):
        if not fits:
            raise SettingsError(f"teacher {teacher.name} {how}")


def check_accuracy(teacher: Teacher, measured: float) -> None:
    """The gate: refuse weights that do not reach what their entry says, or that exceed it.

    **Arguments:** ``measured`` test top-1 in %.

    **Raises:** ``SettingsError`` with both numbers.
    """
    # Rounded, so that a difference of just the tolerance passes; and asked this way round, so that NaN does
    # not.
    if not round(abs(measured - teacher.accuracy), 6) <= TOLERANCE:
        raise SettingsError(
            f"teacher {teacher.name} has an accuracy of {measured:.2f} % here, not {teacher.accuracy:.2f} % "
            f"± {TOLERANCE} as its manifest entry "
            "says; look whether the images are normalised otherwise, the weights are others, or the classes "
            "are in another order"
        )


def write_entry(weights: Path, entry: Teacher) -> None:
    """Write a manifest entry beside a weights file, with the checksum that the file has now.

    For a public teacher without a full published checksum this pins the file: ``fetch`` refuses any other
    from then on.
    """
    own = replace(entry, sha256=sha256(weights), addresses=(), member="")
    write_json(manifest_entry(weights), asdict(own))


def read_entry(weights: Path) -> Teacher | None:
    """The manifest entry beside a weights file, or ``None`` if there is none.

    **Raises:** ``SettingsError`` naming a file that is no such entry.
    """
    path = manifest_entry(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(
            f"{path} is not the JSON of a manifest entry ({error}); restore it, or remove it to use the "
            "weights without"
        ) from None
    return build(Teacher, content, str(path))


def fetch(teacher: Teacher) -> Path:
    """The checkpoint file of a public teacher, downloaded when it is not there.

    The file must have the published checksum, as far as one is published. Where that says too little, the
    first file is taken: ``check_accuracy`` decides about it, and ``write_entry`` pins it.

    **Raises:** ``SettingsError`` naming the addresses, what went wrong, and where the file can be put by
    hand.
    """
    target = teacher_file(teacher.name)
    lock = teachers_lock()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not target.is_file():
            _bring(teacher, target)
        elif difference := _difference(target, target, teacher.sha256):
            raise SettingsError(
                f"{target} is not the checkpoint of {teacher.name}: {difference}; remove it to download it "
                "again"
            )
    return target


def _bring(teacher: Teacher, target: Path) -> None:
    """Download from the first address that has the right file."""
    reasons = []
    for address in teacher.addresses:
        source = teacher_download(address)
        try:
            if not source.is_file():
                _download(address, source, f"download of teacher {teacher.name}")
            with replacing(target) as draft:
                if teacher.member:
                    # The archive stays, for the other teachers in it.
                    _unpack(source, teacher.member, draft)
                else:
                    source.replace(draft)
                if difference := _difference(draft, target, teacher.sha256):
                    raise SettingsError(difference)
            return
        except (OSError, HTTPException, SettingsError, tarfile.TarError) as error:
            if isinstance(error, (SettingsError, tarfile.TarError)):
                # It would be as wrong the next time.
                source.unlink(missing_ok=True)
            reasons.append(f"{address} ({' '.join(str(error).split()) or type(error).__name__})")
    what = f"its {teacher.member}" if teacher.member else "the file"
    raise SettingsError(
        f"teacher {teacher.name} cannot be downloaded from {', '.join(reasons)}; put {what} at {target} by "
        "hand"
    )


def _download(address: str, target: Path, label: str) -> None:
    """Bring all of an address to ``target``, which has its name only when all is there."""
    if not address.startswith("https://"):
        raise SettingsError("it is not an https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    # torch waits for ever for a server that no longer answers.
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        with Progress(label, 1, "file") as progress:
            torch.hub.download_url_to_file(address, str(target), progress=False)
            progress.advance()
    finally:
        socket.setdefaulttimeout(before)


def _unpack(archive: Path, member: str, draft: Path) -> None:
    """Copy one file out of a tar archive; no name in it becomes a path."""
    with tarfile.open(archive) as tar:
        info = next((info for info in tar if info.name.removeprefix("./") == member), None)
        if info is None or not info.isreg():
            raise SettingsError(f"the archive has no file {member}")
        with draft.open("wb") as file:
            shutil.copyfileobj(tar.extractfile(info), file)


def _difference(file: Path, target: Path, published: str = "") -> str | None:
    """How a file's checksum is not what the manifest, as far as one is ``published``, or the entry beside the
    ``target`` says of it, in words.
    """
    found, entry = sha256(file), read_entry(target)
    for who, digits in (("the manifest", published), (manifest_entry(target), entry.sha256 if entry else "")):
        if not found.startswith(digits):
            return f"sha256 is {found}, not {digits} as {who} says"
    return None
