"""Reading a profile and checking it against what exists: networks, methods, arms, metrics, data sets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ...data import describe, example_input
from ...distillers import distiller
from ...models import build_model
from ...paths import CONFIG
from ...settings import Data, Pair, Profile, SettingsError, choose, read_profile
from ...settings.user_code import own_code
from ...similarity import check_metric
from ...taps import candidate_points, point_shapes, stage_ends
from ...training import resolve_precision
from .arms import STAGE_ARMS, STAGE_SETS, LayerMap, check_arm, check_sets, exchange_arms, stage_set_arms


@dataclass(frozen=True)
class Points:
    """Where a network can give or take hints.

    **Arguments:** ``candidates`` sub-block names in forward order; ``ends`` those that end a stage;
    ``shapes`` [C, H, W] of each candidate.
    """

    candidates: tuple[str, ...]
    ends: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def layer_map(self) -> LayerMap:
        """What is known of the sub-blocks before they are compared."""
        return LayerMap(len(self.candidates), self.indices(self.ends), {})

    def indices(self, names) -> tuple[int, ...]:
        """0-based sub-block indices of module names."""
        return tuple(self.candidates.index(name) for name in names)


@cache
def network_points(network: str, data: Data) -> Points:
    """Sub-blocks of a network on images of the data set's shape (one dry forward pass)."""
    entry, example = describe(data), example_input(data)
    model = build_model(network, entry.classes, entry.channels)
    with own_code(network), torch.no_grad():
        candidates = candidate_points(model, example)
        shapes = tuple(tuple(shape) for shape in point_shapes(model, example, candidates))
        check_logits(network, model.eval(), example, entry.classes)
        return Points(candidates, stage_ends(model, example), shapes)


def check_logits(network: str, model: nn.Module, images: Tensor, classes: int) -> None:
    """Refuse a network that gives anything but logits for images [B, C, H, W] in the mode that it is in."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        mode = " in training" * model.training
        raise SettingsError(
            f"network {network} gives {found} for a batch of {len(images)}{mode}; it must give logits of "
            f"shape ({len(images)}, {classes})"
        )


@cache
def _module_names(network: str, data: Data) -> tuple[str, ...]:
    entry = describe(data)
    return tuple(
        name for name, _ in build_model(network, entry.classes, entry.channels).named_modules() if name
    )


def profile_path(profile: str) -> Path:
    """File of a profile: a name in config/, or the path of a YAML file."""
    if not isinstance(profile, str):
        raise SettingsError(
            f"a profile is a name in config/ or the path of a YAML file, not {profile!r}; give it as text"
        )
    if profile.endswith((".yaml", ".yml")):
        if not Path(profile).is_file():
            raise SettingsError(f"no profile file {profile}; give the path of one, or a name in config/")
        return Path(profile)
    names = sorted(path.stem for path in CONFIG.glob("*.yaml"))
    choose("profile", profile, [*names, "<file>.yaml"])
    return CONFIG / f"{profile}.yaml"


def whole_source(profile: str) -> str:
    """What names a profile in every folder, for notebooks run in their own: a name, or a file's full path."""
    named = not profile.endswith((".yaml", ".yml"))
    return profile if named else str(profile_path(profile).resolve())


def load_profile(profile: str) -> Profile:
    """Read and check a profile.

    **Arguments:** ``profile`` a name in config/ or the path of a YAML file.

    **Raises:** ``SettingsError`` naming the first thing that is wrong and the valid choices.
    """
    path = profile_path(profile)
    found = checked(read_profile(path))
    if path.resolve().parent != CONFIG and (CONFIG / f"{found.name}.yaml").is_file():
        raise SettingsError(
            f"{path.name}.name is {found.name}, as config/ has it, and its results would be written among "
            "those; give another name"
        )
    if found.shortcut_seeds and not any(distiller(method).hints for method in found.methods):
        raise SettingsError(
            f"shortcut_seeds is {found.shortcut_seeds}, but none of the methods has hints to compare with; "
            "give 0, or add such a method"
        )
    for method in found.tuning.methods if found.tuning else ():
        choose(
            "method with hints of this profile",
            method,
            [own for own in found.methods if distiller(own).hints],
        )
    return found


def checked(profile: Profile) -> Profile:
    """Check names and pairs of a profile, and fill in each pair's student points and number of hint layers,
    and the precision.
    """
    for data in (profile.data, *([profile.tuning_data] if profile.tuning else [])):
        _check_data(data)
    if profile.deterministic:
        # Read when the GPU is first used, which is after a profile is.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for metric in profile.metrics:
        check_metric(metric)
    for method in (*profile.methods, *profile.weights.hint):
        distiller(method)
    for method in profile.methods:
        _check_weight(method, profile)
    _check_titles(profile.methods)
    profile = replace(profile, arms=_with_stage_sets(profile))
    for arm in profile.arms:
        check_arm(arm, profile.metrics)
    _check_parts_of_the_grid(profile)
    pairs = tuple(resolve_pair(pair, profile) for pair in profile.pairs)
    example = resolve_pair(profile.example_pair, profile) if profile.example_pair else None
    for network in profile.checkpoints:
        choose("teacher in checkpoints", network, [pair.teacher for pair in pairs])
    return replace(profile, pairs=pairs, example_pair=example, precision=resolve_precision(profile.precision))


def _with_stage_sets(profile: Profile) -> tuple[str, ...]:
    """The arms of a profile, with those that ``stage-sets`` stands for in its place."""
    if STAGE_SETS not in profile.arms:
        return profile.arms
    found = {}
    for pair in profile.pairs:
        teacher, student = (network_points(network, profile.data) for network in (pair.teacher, pair.student))
        k = pair.k or len(pair.student_points or student.ends)
        try:
            found[stage_set_arms(teacher.layer_map, k)] = pair
        except SettingsError as error:
            raise SettingsError(f"pair {pair.teacher} → {pair.student}: {error}") from None
    if len(found) > 1:
        named = ", ".join(pair.name for pair in found.values())
        raise SettingsError(f"{STAGE_SETS} are other arms for each of {named}; give each its own profile")
    (sets,) = found
    at = profile.arms.index(STAGE_SETS)
    return (*profile.arms[:at], *sets, *profile.arms[at + 1 :])


def _check_parts_of_the_grid(profile: Profile) -> None:
    """Refuse a pair, a number of seeds, a sweep or a contrast for what the profile does not have."""
    hinted = [method for method in profile.methods if distiller(method).hints]
    for method in (*profile.fewer_seeds, *(method for pair in profile.pairs for method in pair.methods)):
        choose("method with hints of this profile", method, hinted)
    for sweep in profile.sweeps:
        choose(
            "method with one weight of this profile",
            sweep.method,
            [method for method in hinted if not distiller(method).parts],
        )
        _check_weighted(f"the sweep of {sweep.method}", sweep.arms, profile)
    if profile.tuning:
        _check_weighted("the tuning", profile.tuning.arms, profile)
    if profile.exchange:
        choose("metric of the exchange", profile.exchange.metric, profile.metrics)
        if not hinted:
            raise SettingsError(
                "there is an exchange of hint layers, but none of the methods has hints; add such a method, "
                "or leave it out"
            )
        for method in profile.exchange.methods:
            choose("method with hints of this profile", method, hinted)
    for arm in (*profile.contrasts, *profile.contrasts.values()):
        choose("arm of the contrasts", arm, profile.arms)
    there = profile.data.train_images or describe(profile.data).counts[0]
    if profile.student_images and 0 < there <= profile.student_images:
        raise SettingsError(
            f"student_images is {profile.student_images}, but the teachers have {there}; give fewer, or "
            "leave it out for all"
        )


def _check_weighted(what: str, arms: Sequence[str], profile: Profile) -> None:
    """Refuse arms that do not exist, or to which no weight of the hint loss applies."""
    for arm in arms:
        check_arm(arm, profile.metrics)
        if arm == "none":
            raise SettingsError(f"{what} has the arm none, to which no weight applies; leave it out")


def _check_titles(methods: Sequence[str]) -> None:
    """Refuse two methods of one title, by which tables and figures tell them apart."""
    named: dict[str, str] = {}
    for method in methods:
        title = distiller(method).title
        if named.setdefault(title, method) != method:
            raise SettingsError(
                f"methods {named[title]} and {method} have the same title, {title!r}; give the Distiller of "
                "your own another"
            )


def _check_data(data: Data) -> None:
    """Refuse settings of the images that would not count."""
    streamed, counts = describe(data).streamed, describe(data).counts
    if data.root is not None and data.dataset != "imagefolder":
        raise SettingsError(
            f"root is given, but the images of {data.dataset} are not in a folder of your own; leave it out, "
            "or take imagefolder"
        )
    if data.image_size is not None and not streamed and data.dataset != "imagefolder":
        raise SettingsError(
            f"image_size is {data.image_size}, but images of {data.dataset} have the size that they have; "
            "leave it out"
        )
    for name, wanted, there in zip(
        ("train_images", "test_images"), (data.train_images, data.test_images), counts, strict=True
    ):
        if wanted and 0 < there < wanted and not data.classes:
            raise SettingsError(
                f"{name} is {wanted}, but {data.dataset} has {there}; give at most that, or leave it out for "
                "all"
            )
    if data.held_out and 0 < counts[0] < data.held_out + (data.train_images or 2):
        left = (
            f"{counts[0]} training images, too few for {data.held_out} held out beside "
            f"{data.train_images or 'the others'}"
        )
        raise SettingsError(f"{data.dataset} has {left}; give fewer")


def _check_weight(method: str, profile: Profile) -> None:
    """Refuse a method whose loss, without hints, is nothing at all: its students would stay as they were
    drawn.
    """
    entry, weights = distiller(method), profile.weights
    own = 0.0 if entry.hints else weights.hint.get(method, entry.weight)
    if not (weights.ce * entry.ce or weights.kd * entry.kd or own or entry.parts):
        raise SettingsError(
            f"weights leave nothing of the loss of method {method} without hints; give ce or kd a weight "
            "above 0, or leave it out"
        )


def resolve_pair(pair: Pair, profile: Profile) -> Pair:
    """The pair with its student points and k written out.

    **Raises:** ``SettingsError`` when the numbers of teacher and student points differ, when k exceeds the
    teacher's sub-blocks, or when a student point does not exist.
    """
    teacher, student = (network_points(network, profile.data) for network in (pair.teacher, pair.student))
    points = pair.student_points or student.ends
    for point in points:
        choose(f"sub-block of {pair.student}", point, _module_names(pair.student, profile.data))
    k = pair.k or len(points)
    where = f"pair {pair.teacher} → {pair.student}"
    if k > len(teacher.candidates):
        raise SettingsError(
            f"{where}: k is {k}, but {pair.teacher} has {len(teacher.candidates)} sub-blocks; give a k of at "
            "most that"
        )
    if k != len(points):
        raise SettingsError(
            f"{where}: {k} hint layers for {len(points)} of the student ({', '.join(points)}); "
            f"give k: {len(points)}, or {k} student_points among {', '.join(student.candidates)}"
        )
    # The weights of hint losses are swept on the first pair, and tuned there and on those that are named.
    swept = [arm for sweep in profile.sweeps for arm in sweep.arms] if pair == profile.pairs[0] else []
    tuned = profile.tuning.arms if pair.name in {tuned.name for tuned, _ in profile.tuned} else ()
    arms = [
        *profile.arms,
        *swept,
        *tuned,
        *(exchange_arms(profile.exchange.metric) if profile.exchange else ()),
    ]
    staged = [arm for arm in arms if arm.startswith(STAGE_ARMS)]
    if staged and k > len(teacher.ends):
        raise SettingsError(
            f"{where}: the arm {staged[0]} has {len(teacher.ends)} hint layers ({', '.join(teacher.ends)}), "
            f"but k is {k}; give {len(teacher.ends)} student_points among {', '.join(student.candidates)}, "
            "or leave out that arm, and a sweep or an exchange with it"
        )
    fewest, which = (1, "the arm final-end has 1") if k > 1 and "final-end" in arms else (k, f"k is {k}")
    for method in pair.methods or profile.methods:
        if fewest < (least := distiller(method).least_points):
            needs = f"method {method} needs {least} hint layers or more"
            raise SettingsError(f"{where}: {needs}, but {which}; leave it out")
    try:
        check_sets(arms, teacher.layer_map, k)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
    return replace(pair, student_points=points, k=k)
