"""The weight of a method's hint loss: as stated, or tuned on held-out images, or the literature's."""

from dataclasses import replace

from ...distillers import distiller
from ...files import naming_damage, read_json
from ...paths import StudyPaths
from ...records import differing
from ...settings import Pair, Profile, SettingsError, resolved
from ...settings.user_code import sources


class NotTuned(SettingsError):
    """A weight that will be chosen by training, and has not been yet."""


def has_arms(method: str) -> bool:
    """Whether a method uses hint layers."""
    return distiller(method).hints


def hint_weight(profile: Profile, pair: Pair, method: str) -> float | None:
    """The weight of a method's hint loss: as stated in the profile, or tuned, or the literature's.

    A tuned one is the pair's own, or that of the first pair that has one.

    **Returns:** nothing while the tuning, the profile's own or another's, has not chosen it.
    """
    if method in profile.weights.hint or not has_arms(method):
        return profile.weights.hint.get(method, distiller(method).weight)
    if profile.weights.tuned_by:
        by_pair = _tuned_weights(profile.weights.tuned_by)
        there = (methods for methods in (by_pair.get(pair.name, {}), *by_pair.values()) if method in methods)
        # The parts of a sum have their own.
        whole = distiller(method).weight if distiller(method).parts else None
        return next((methods[method]["weight"] for methods in there), whole)
    tuned = [tuned for tuned, tuned_method in profile.tuned if tuned_method == method]
    if not tuned:
        return distiller(method).weight
    own = pair if pair in tuned else tuned[0]
    found = _tuned_weights(profile.name).get(own.name, {}).get(method)
    return (
        found["weight"]
        if found and not differing(found["settings"], tuning_conditions(profile, own, method))
        else None
    )


def _tuned_weights(profile: str) -> dict[str, dict[str, dict]]:
    """Pair → method → what ``study.tuning`` has written of it."""
    path = StudyPaths(profile).tuned_weights
    content = read_json(path) or {}
    with naming_damage(path):
        if not all(
            {"weight", "settings"} <= {*entry} for methods in content.values() for entry in methods.values()
        ):
            raise ValueError("a weight lacks its settings")
    return content


def tuning_conditions(profile: Profile, pair: Pair, method: str) -> dict:
    """What the choice of a weight depends on, as plain values."""
    tuning = profile.tuning
    stated = {name: weight for name, weight in profile.weights.hint.items() if name != method}
    return {
        "method": method,
        "teacher": resolved(profile.teacher_settings(pair.teacher)),
        "student": [pair.student, *pair.student_points],
        "k": pair.k,
        "weights": resolved(replace(profile.weights, hint=stated)),
        "data": resolved(profile.tuning_data),
        "schedule": resolved(profile.student),
        "precision": profile.precision,
        "deterministic": profile.deterministic,
        "profile_images": profile.profile_images,
        "sources": [*sources(method, pair.student)],
        "tuning": {"weights": [*tuning.methods[method]], "arms": [*tuning.arms], "seeds": [*tuning.seeds]},
    }


def weight_to_train(profile: Profile, pair: Pair, method: str) -> float:
    """As ``hint_weight``.

    **Raises:** ``NotTuned`` before the weight is chosen.
    """
    weight = hint_weight(profile, pair, method)
    if weight is None:
        command = f"python -m pursuhint_lib tune {profile.weights.tuned_by or profile.name}"
        raise NotTuned(
            f"the weight of {method} is not tuned yet, which profile {profile.name} asks for; {command} does "
            "it, or state it in weights.hint"
        )
    return weight
