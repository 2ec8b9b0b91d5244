"""Teachers by name: what they are, where their weights come from, and whether the weights are what they claim
to be.

``TEACHERS`` holds the public CIFAR-100 teachers; ``torchvision/<network>/IMAGENET1K_V1`` names any of
torchvision's ImageNet ones. A teacher trained here gets its entry as a JSON file beside its weights.
"""

import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

import torchvision

from .files import replacing, sha256, write_json
from .paths import ROOT, manifest_entry, teacher_download, teacher_file, teachers_lock
from .progress import Progress
from .settings import SettingsError, build, choose

# How far a teacher's measured accuracy may lie from its entry, in points.
TOLERANCE = 0.1

TORCHVISION = "torchvision/"
# torchvision's DEFAULT changes from version to version, so the weights are named.
IMAGENET_WEIGHTS = "IMAGENET1K_V1"

# The largest of the known checkpoints have a bit more than 1 GiB.
MAX_BYTES = 2 << 30
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
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
    networks = torchvision.models.list_models(module=torchvision.models)
    published = [
        network
        for network in networks
        if IMAGENET_WEIGHTS in torchvision.models.get_model_weights(network).__members__
    ]
    choose("teacher", name, [f"{TORCHVISION}{network}/{IMAGENET_WEIGHTS}" for network in published])
    network = name.split("/")[1]
    weights = torchvision.models.get_model_weights(network)[IMAGENET_WEIGHTS]
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
    difference = entry and _difference(path, {str(manifest_entry(path)): entry.sha256})
    if difference:
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
    if teacher.network != network:
        raise SettingsError(
            f"teacher {teacher.name} is a {teacher.network}, not a {network}; give a checkpoint of {network}"
        )
    if teacher.dataset != dataset:
        raise SettingsError(
            f"teacher {teacher.name} learnt {teacher.dataset}, and the study is on {dataset}; give one that "
            f"learnt {dataset}"
        )
    if (tuple(teacher.mean), tuple(teacher.std)) != (tuple(mean), tuple(std)):
        raise SettingsError(
            f"teacher {teacher.name} learnt images normalised with mean {list(teacher.mean)} and std "
            f"{list(teacher.std)}, and {dataset} "
            f"has mean {list(mean)} and std {list(std)} here; give a teacher that learnt images normalised "
            "like that"
        )


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
    """The checkpoint file of a public teacher, downloaded when it is not there; an interrupted download goes
    on where it was.

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
        elif difference := _difference(target, _checksums(teacher)):
            raise SettingsError(
                f"{target} is not the checkpoint of {teacher.name}: {difference}; remove it to download it "
                "again"
            )
    return target


def _bring(teacher: Teacher, target: Path) -> None:
    """Download from the first address that has the right file."""
    reasons = []
    for address in teacher.addresses:
        try:
            return _bring_from(address, teacher, target)
        except (OSError, HTTPException, SettingsError) as error:
            reasons.append(f"{address} ({' '.join(str(error).split()) or type(error).__name__})")
    what = f"its {teacher.member}" if teacher.member else "the file"
    raise SettingsError(
        f"teacher {teacher.name} cannot be downloaded from {', '.join(reasons)}; put {what} at {target} by "
        "hand"
    )


def _bring_from(address: str, teacher: Teacher, target: Path) -> None:
    source = teacher_download(address)
    if not source.is_file():
        _download(address, source, f"download of teacher {teacher.name}")
    try:
        with replacing(target) as draft:
            if teacher.member:
                # The archive stays, for the other teachers in it.
                try:
                    _unpack(source, teacher.member, draft)
                except tarfile.TarError as error:
                    raise SettingsError(f"what came is no whole tar archive: {error}") from None
            else:
                source.replace(draft)
            if difference := _difference(draft, _checksums(teacher)):
                raise SettingsError(difference)
    except SettingsError:
        # It would be as wrong the next time.
        source.unlink(missing_ok=True)
        raise


def _unpack(archive: Path, member: str, draft: Path) -> None:
    """Copy one file out of a tar archive; nothing else of it is looked at, and no name in it
    becomes a path.
    """
    with tarfile.open(archive, "r|*") as tar:
        for info in tar:
            if info.name.removeprefix("./") != member:
                continue
            if not info.isreg() or info.size > MAX_BYTES:
                raise SettingsError(
                    f"{member} in the archive is no plain file of at most {MAX_BYTES >> 20} MiB"
                )
            with draft.open("wb") as file:
                shutil.copyfileobj(tar.extractfile(info), file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
            return
    raise SettingsError(f"the archive has no {member}")


def _checksums(teacher: Teacher) -> dict[str, str]:
    """Who says so → the first hex digits that the checkpoint's checksum must have."""
    target = teacher_file(teacher.name)
    pinned = read_entry(target)
    return {"the manifest": teacher.sha256} | ({str(manifest_entry(target)): pinned.sha256} if pinned else {})


def _difference(path: Path, checksums: dict[str, str]) -> str | None:
    found = sha256(path)
    return next(
        (
            f"sha256 is {found}, not {digits} as {who} says"
            for who, digits in checksums.items()
            if not found.startswith(digits)
        ),
        None,
    )


def _download(address: str, target: Path, label: str) -> None:
    """Bring all of an address to ``target``. What has come so far is in ``<target>.part``, and what version
    it is of in ``<target>.etag``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, version = (target.with_name(f"{target.name}.{ending}") for ending in ("part", "etag"))
    while True:
        before = _size(part)
        try:
            with _answer(address, part, version) as answer:
                _receive(answer, part, version, label)
            break
        except (OSError, HTTPException):
            # A connection that breaks is taken up again, as long as every attempt brings something.
            if _size(part) <= before:
                raise
    version.unlink(missing_ok=True)
    part.replace(target)


def _answer(address: str, part: Path, version: Path) -> HTTPResponse:
    """Ask for what is missing of a file; for all of it, should it no longer be the version that was begun."""
    headers = {"User-Agent": "pursuhint"}
    if start := _size(part):
        headers["Range"] = f"bytes={start}-"
        if version.is_file():
            headers["If-Range"] = version.read_text(encoding="utf-8")
    try:
        return _opener().open(Request(_https(address), headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise
    # There is nothing from there on: what is here is no beginning of the file.
    part.unlink()
    return _answer(address, part, version)


def _receive(answer: HTTPResponse, part: Path, version: Path, label: str) -> None:
    """Write an answer to the file, behind what is there if it is the rest, and over it if it is the whole."""
    done = _size(part) if answer.status == 206 else 0
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        raise ConnectionError(
            f"the server sent {answer.headers.get('Content-Range')} where the bytes from {done} on were "
            "asked for"
        )
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else None
    if not done:
        etag = answer.headers.get("ETag", "")
        version.unlink(missing_ok=True)
        if etag.startswith('"'):  # a weak one, W/"…", does not vouch for the bytes
            version.write_text(etag, encoding="utf-8")
    with part.open("ab" if done else "wb") as file, Progress(label, 1, "file") as progress:
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if max(done, total or 0) > MAX_BYTES:
                raise SettingsError(
                    f"the file has more than {MAX_BYTES >> 20} MiB, which no known checkpoint has"
                )
            if total:
                progress.within(done / total)
        file.flush()
        os.fsync(file.fileno())
        if total not in (None, done):
            raise ConnectionError(f"the connection broke after {done} of {total} bytes")
        progress.advance()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _https(address: str) -> str:
    """The address, if nobody can change on the way what comes from it."""
    if not address.startswith("https://"):
        raise SettingsError(f"{address} is not an https address")
    return address


class _HttpsRedirects(HTTPRedirectHandler):
    """Goes on to other https addresses only."""

    def redirect_request(self, request, answer, code, message, headers, address):
        try:
            _https(address)
        except SettingsError:
            answer.close()
            raise
        return super().redirect_request(request, answer, code, message, headers, address)


def _opener() -> OpenerDirector:
    return build_opener(_HttpsRedirects)
