"""Every distillation method on every size relation of student and teacher maps."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pursuhint_lib.distillers import DISTILLERS, Signals, Task, distiller
from pursuhint_lib.losses import attention_transfer, kd, similarity_preserving
from pursuhint_lib.settings import SettingsError

WITH_HINTS = [name for name, entry in DISTILLERS.items() if entry.hints]
ON_LOGITS = [
    name
    for name, entry in DISTILLERS.items()
    if entry.build and not entry.hints and not entry.reuses_classifier
]
BETWEEN_IMAGES = ["cc", "rkd", "pkt", "crd-batch"]
# Of the training images, which memories hold: the batches of these tests are the first of them.
LABELS = torch.arange(12) % 3
# [C, H, W] of (student, teacher) at each hint layer, named by the student's size against the teacher's.
RELATIONS = {
    "equal": [((3, 4, 4), (5, 4, 4)), ((6, 2, 2), (4, 2, 2))],
    "half": [((3, 4, 4), (5, 8, 8)), ((6, 2, 2), (4, 4, 4))],
    "double": [((3, 8, 8), (5, 4, 4)), ((6, 4, 4), (4, 2, 2))],
    "quarter": [((3, 2, 2), (5, 8, 8)), ((6, 1, 1), (4, 4, 4))],
    "four-times": [((3, 8, 8), (5, 2, 2)), ((6, 4, 4), (4, 1, 1))],
    "uneven": [((3, 7, 7), (5, 4, 4)), ((6, 3, 3), (4, 7, 7))],
    "all-kinds": [
        ((3, 8, 8), (5, 8, 8)),
        ((4, 4, 4), (5, 8, 8)),
        ((3, 8, 8), (6, 4, 4)),
        ((4, 2, 2), (3, 8, 8)),
        ((3, 8, 8), (4, 2, 2)),
    ],
}


def make_maps(relation, side, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed + side)
    return [torch.randn(batch, *shapes[side], generator=generator) for shapes in RELATIONS[relation]]


def make_signals(relation, batch=4, epoch=0):
    """Maps that need no gradient, and the labels and places of their images. The last epoch of 8 is beyond
    every first stage.
    """
    maps = make_maps(relation, 0, batch), make_maps(relation, 1, batch)
    return Signals(*maps, labels=LABELS[:batch], indices=torch.arange(batch), epoch=epoch, epochs=8)


def task(relation):
    return Task(*([torch.Size(pair[side]) for pair in RELATIONS[relation]] for side in (0, 1)), LABELS)


def build(name, relation):
    torch.manual_seed(0)
    return DISTILLERS[name].build(task(relation))


def matched(a, b):
    """Both maps pooled to the smaller side."""
    side = min(a.shape[2], b.shape[2])
    return F.adaptive_avg_pool2d(a, side), F.adaptive_avg_pool2d(b, side)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("name", WITH_HINTS)
def test_method_gives_a_finite_loss_and_gradients_for_student_and_own_parts(name, relation):
    module, signals = build(name, relation), make_signals(relation, epoch=7)
    before = [teacher.clone() for teacher in signals.teacher_maps]
    students = [student.requires_grad_() for student in signals.student_maps]
    loss = module(signals)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    # One value per image, or per channel, normalises to 1 whatever the student does, so AT, NST and FT are
    # blind at a 1×1 map.
    blind = [name in ("at", "nst", "ft") and 1 in (s[1], t[1]) for s, t in RELATIONS[relation]]
    for student, unseen in zip(students, blind, strict=True):
        assert student.grad.isfinite().all()
        assert unseen or student.grad.norm() > 0
    for part, own in module.named_parameters():
        # FT's paraphraser is frozen by then.
        frozen = part.startswith(("paraphrasers", "rebuilders"))
        assert own.grad is None if frozen else own.grad.isfinite().all()
    for teacher, original in zip(signals.teacher_maps, before, strict=True):
        assert not teacher.requires_grad
        assert torch.equal(teacher, original)


@pytest.mark.parametrize("name", BETWEEN_IMAGES)
def test_methods_that_compare_images_refuse_a_batch_of_one(name):
    with pytest.raises(ValueError, match="at least 2 .* got 1"):
        build(name, "equal")(make_signals("equal", batch=1))


@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize("relation", ["equal", "half", "double"])
@pytest.mark.parametrize("name", [name for name in WITH_HINTS if name not in BETWEEN_IMAGES])
def test_batch_of_one_works_where_maps_have_space(name, relation, epoch):
    signals = make_signals(relation, batch=1, epoch=epoch)
    students = [student.requires_grad_() for student in signals.student_maps]
    loss = build(name, relation)(signals)
    loss.backward()
    assert loss.isfinite()
    assert all(student.grad is None or student.grad.isfinite().all() for student in students)


def test_fitnet_refuses_one_image_with_one_value_per_channel():
    module = DISTILLERS["fitnet"].build(Task([torch.Size((3, 1, 1))], [torch.Size((4, 1, 1))]))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(Signals([torch.ones(1, 3, 1, 1)], [torch.ones(1, 4, 1, 1)]))


@pytest.mark.parametrize("name", [name for name in WITH_HINTS if name != "reviewkd"])
def test_unequal_numbers_of_maps_are_refused(name):
    signals = make_signals("equal", epoch=7)
    with pytest.raises(ValueError, match="zip"):
        build(name, "equal")(replace(signals, student_maps=signals.student_maps[:1]))


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_losses_are_summed_over_the_points(relation):
    signals, fitnet = make_signals(relation), build("fitnet", relation)
    expected = {
        "at": sum(attention_transfer([s], [t]) for s, t in signals.points),
        "sp": sum(similarity_preserving(s, t) for s, t in signals.points),
        "fitnet": sum(
            F.mse_loss(*matched(regress(s), t))
            for regress, (s, t) in zip(fitnet.regressors, signals.points, strict=True)
        ),
    }
    for name, value in expected.items():
        assert build(name, relation)(signals).item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("relation", "kind", "kernel"),
    [("equal", nn.Conv2d, 1), ("double", nn.Conv2d, 3), ("half", nn.ConvTranspose2d, 4)],
)
def test_fitnet_regressor_reaches_the_teachers_shape_in_the_published_way(relation, kind, kernel):
    points = make_signals(relation).points
    for regress, (student, teacher) in zip(build("fitnet", relation).regressors, points, strict=True):
        assert regress(student).shape == teacher.shape
        assert [type(part) for part in regress] == [kind, nn.BatchNorm2d, nn.ReLU]
        assert regress[0].kernel_size == (kernel, kernel)
        assert regress[0].bias is not None


@pytest.mark.parametrize("relation", RELATIONS)
def test_vid_begins_with_variance_five_and_means_of_three_pointwise_convolutions(relation):
    module, signals = build("vid", relation), make_signals(relation)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"means", "scales"}
    perfect = []
    for scale, network, (s, t) in zip(module.scales, module.means, signals.points, strict=True):
        torch.testing.assert_close(
            F.softplus(scale) + 1e-5, torch.full((t.shape[1],), 5.0), rtol=0, atol=1e-5
        )
        assert [type(part) for part in network] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
        assert all(part.bias is None and part.kernel_size == (1, 1) for part in network[::2])
        assert [part.out_channels for part in network[::2]] == 3 * [t.shape[1]]
        perfect.append(network(s).detach())
    loss = module(replace(signals, teacher_maps=perfect))
    assert loss.item() == pytest.approx(len(perfect) * 0.5 * math.log(5), abs=1e-4)


@pytest.mark.parametrize("name", ["at", "sp"])
def test_methods_without_trainable_parts_have_no_state(name):
    assert not build(name, "double").state_dict()


def test_registry_names_every_method_once_and_completely():
    assert len({entry.title for entry in DISTILLERS.values()}) == len(DISTILLERS)
    assert all(entry.title and entry.source for entry in DISTILLERS.values())
    for name, entry in DISTILLERS.items():
        assert entry.uses_teacher == (name != "ce")
        assert (entry.weight > 0) == (entry.build is not None)
        assert entry.weight > 0 or not entry.hints
    weights = {name: DISTILLERS[name].weight for name in ("fitnet", "at", "vid", "sp")}
    assert weights == {"fitnet": 100, "at": 1000, "vid": 1, "sp": 3000}, "the common benchmark's"


def logits(batch=6, classes=5):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    return {
        "student_logits": student.requires_grad_(),
        "teacher_logits": teacher,
        "labels": torch.arange(batch) % classes,
        "temperature": 4.0,
    }


# That their loss falls: test_methods_on_pairs.py.
@pytest.mark.parametrize("name", ON_LOGITS)
def test_methods_on_logits_take_the_place_of_kd_and_need_no_hint_points(name):
    assert not DISTILLERS[name].kd
    module, signals = DISTILLERS[name].build(Task()), Signals(**logits())
    assert not list(module.parameters())
    loss = module(signals)
    loss.backward()
    assert loss.isfinite()
    assert signals.student_logits.grad.norm() > 0


def test_a_sum_is_the_weighted_sum_of_its_parts():
    signals = Signals(make_maps("half", 0), make_maps("half", 1), **logits(batch=4))

    def value(entry):
        return entry.build(task("half"))(signals).item()

    entry = distiller("at+wsl")
    assert (entry.title, entry.weight, entry.hints, entry.kd) == ("AT + WSL", 1.0, True, False)
    assert entry.parts == {"at": 1000.0, "wsl": 2.25}
    at, wsl = (value(DISTILLERS[name]) for name in ("at", "wsl"))
    assert value(entry) == pytest.approx(1000 * at + 2.25 * wsl, rel=1e-5)
    assert value(distiller("at+wsl", (2.0, 3.0))) == pytest.approx(2 * at + 3 * wsl, rel=1e-5)
    soft = kd(signals.student_logits, signals.teacher_logits, 4.0).item()
    assert value(distiller("at+kd")) == pytest.approx(1000 * at + soft, rel=1e-5)
    assert (distiller("at+kd").kd, distiller("wsl+dkd").hints, distiller("fitnet+sp").kd) == (
        False,
        False,
        True,
    )
    own, alone = (list(distiller(name).build(task("half")).parameters()) for name in ("fitnet+sp", "fitnet"))
    assert len(own) == len(alone)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("atx", r"unknown method 'atx' \(did you mean 'at'\?\)"),
        ("at+spp", r"unknown part .* at\+spp 'spp' \(did you mean 'sp'\?\)"),
        ("at+ce", r"unknown part .* at\+ce 'ce'"),
        ("at+at", r"at\+at names a part more than once"),
    ],
)
def test_methods_that_do_not_exist_are_refused_with_the_valid_ones(method, words):
    with pytest.raises(SettingsError, match=words):
        distiller(method)


def test_semckd_weighs_every_teacher_point_for_every_student_point():
    module = build("semckd", "all-kinds")
    students, teachers = make_maps("all-kinds", 0, batch=5), make_maps("all-kinds", 1, batch=5)
    queries, keys = (
        [F.normalize(net(module._described(x)), dim=1) for net, x in zip(nets, maps, strict=True)]
        for nets, maps in ((module.queries, students), (module.keys, teachers))
    )
    expected = 0.0
    for query, regressors, student in zip(queries, module.regressors, students, strict=True):
        shares = torch.stack([(query * key).sum(1) for key in keys]).softmax(0)
        for share, regress, teacher in zip(shares, regressors, teachers, strict=True):
            s, t = matched(student, teacher)
            expected += (share * (regress(s) - t).square().mean((1, 2, 3))).mean().item() / len(students)
    assert module(Signals(students, teachers)).item() == pytest.approx(expected, rel=1e-4)
