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
WITHOUT_HINTS = [name for name, entry in DISTILLERS.items() if not entry.build]
ON_LOGITS = [
    name
    for name, entry in DISTILLERS.items()
    if entry.build and not entry.hints and not entry.reuses_classifier
]
BETWEEN_IMAGES = ["cc", "rkd", "pkt", "crd-batch"]
# Of the training images, which memories hold: the batches of these tests are the first of them.
LABELS = torch.arange(12) % 3
# [C, H, W] of (student, teacher) at each hint point, named by the student's size against the teacher's.
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


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("name", WITH_HINTS)
def test_method_gives_a_finite_loss_and_gradients_for_student_and_own_parts(name, relation):
    module = build(name, relation)
    signals = make_signals(relation, epoch=7)
    students, teachers = signals.student_maps, signals.teacher_maps
    before = [teacher.clone() for teacher in teachers]
    for student in students:
        student.requires_grad_()
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
    # FT's paraphraser is frozen by then.
    frozen = [
        part for part, _ in module.named_parameters() if part.startswith(("paraphrasers", "rebuilders"))
    ]
    for part, own in module.named_parameters():
        assert (own.grad is None) == (part in frozen)
        assert part in frozen or own.grad.isfinite().all()
    for teacher, original in zip(teachers, before, strict=True):
        assert not teacher.requires_grad
        assert teacher.grad is None
        assert torch.equal(teacher, original)


@pytest.mark.parametrize("name", WITH_HINTS)
def test_training_its_own_parts_and_the_student_lowers_the_loss(name):
    module = build(name, "half")
    for epoch in (0, 7):
        signals = make_signals("half", epoch=epoch)
        students = [nn.Parameter(s) for s in signals.student_maps]
        signals = replace(signals, student_maps=students)
        optimiser = torch.optim.Adam([*module.parameters(), *students], lr=0.02)
        first = module(signals).item()
        for _ in range(40):
            optimiser.zero_grad()
            module(signals).backward()
            optimiser.step()
        assert module(signals).item() < first


@pytest.mark.parametrize("name", BETWEEN_IMAGES)
def test_methods_that_compare_images_refuse_a_batch_of_one(name):
    assert DISTILLERS[name].least_images == 2
    with pytest.raises(ValueError, match="needs at least 2 of them: got 1"):
        build(name, "equal")(make_signals("equal", batch=1))


@pytest.mark.parametrize("relation", ["equal", "half", "double"])
@pytest.mark.parametrize("name", [name for name in WITH_HINTS if name not in BETWEEN_IMAGES])
def test_batch_of_one_works_where_maps_have_space(name, relation):
    for epoch in (0, 7):
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
def test_fitnet_equals_the_summed_errors_of_its_regressors(relation):
    module = build("fitnet", relation)
    students, teachers = make_maps(relation, 0), make_maps(relation, 1)
    expected = 0.0
    for regress, student, teacher in zip(module.regressors, students, teachers, strict=True):
        predicted = regress(student)
        side = min(predicted.shape[2], teacher.shape[2])
        expected += (
            (F.adaptive_avg_pool2d(predicted, side) - F.adaptive_avg_pool2d(teacher, side))
            .square()
            .mean()
            .item()
        )
    assert module(Signals(students, teachers)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("relation", "kind", "kernel"),
    [("equal", nn.Conv2d, 1), ("double", nn.Conv2d, 3), ("half", nn.ConvTranspose2d, 4)],
)
def test_fitnet_regressor_reaches_the_teachers_shape_in_the_published_way(relation, kind, kernel):
    module = build("fitnet", relation)
    for regress, student, teacher in zip(
        module.regressors, make_maps(relation, 0), make_maps(relation, 1), strict=True
    ):
        assert regress(student).shape == teacher.shape
        assert type(regress[0]) is kind
        assert regress[0].kernel_size == (kernel, kernel)
        assert regress[0].bias is not None
        assert [type(part) for part in regress[1:]] == [nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("relation", RELATIONS)
def test_vid_variance_starts_at_five(relation):
    module = build("vid", relation)
    assert [len(scale) for scale in module.scales] == [teacher[0] for _, teacher in RELATIONS[relation]]
    for scale in module.scales:
        torch.testing.assert_close(F.softplus(scale) + 1e-5, torch.full_like(scale, 5.0), rtol=0, atol=1e-5)


def test_vid_loss_at_a_perfect_mean_is_half_the_log_variance_per_point():
    module = build("vid", "equal")
    students = make_maps("equal", 0)
    perfect = [mean(student).detach() for mean, student in zip(module.means, students, strict=True)]
    assert module(Signals(students, perfect)).item() == pytest.approx(2 * 0.5 * math.log(5), abs=1e-5)


def test_vid_mean_networks_are_three_pointwise_convolutions_without_bias():
    for network, (student, teacher) in zip(build("vid", "half").means, RELATIONS["half"], strict=True):
        convolutions = [part for part in network if isinstance(part, nn.Conv2d)]
        assert [type(part) for part in network] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
        assert all(part.bias is None and part.kernel_size == (1, 1) for part in convolutions)
        assert [(part.in_channels, part.out_channels) for part in convolutions] == [
            (student[0], teacher[0])
        ] + 2 * [(teacher[0], teacher[0])]


def test_vid_trains_means_and_variances():
    trained = {name.split(".")[0] for name, _ in build("vid", "equal").named_parameters()}
    assert trained == {"means", "scales"}


@pytest.mark.parametrize("name", ["at", "sp"])
def test_methods_without_trainable_parts_have_no_state(name):
    assert not build(name, "double").state_dict()


@pytest.mark.parametrize("relation", RELATIONS)
def test_at_and_sp_sum_their_loss_over_points(relation):
    students, teachers = make_maps(relation, 0), make_maps(relation, 1)
    points = list(zip(students, teachers, strict=True))
    expected = {
        "at": sum(float(attention_transfer([s], [t])) for s, t in points),
        "sp": sum(float(similarity_preserving(s, t)) for s, t in points),
    }
    for name, value in expected.items():
        assert float(build(name, relation)(Signals(students, teachers))) == pytest.approx(value, rel=1e-5)


def test_registry_names_every_method_once_and_completely():
    titles = [entry.title for entry in DISTILLERS.values()]
    assert len(set(titles)) == len(titles)
    assert all(entry.title and entry.source for entry in DISTILLERS.values())


@pytest.mark.parametrize("name", WITHOUT_HINTS)
def test_methods_without_hints_have_no_hint_weight(name):
    assert DISTILLERS[name].weight == 0


@pytest.mark.parametrize("name", WITH_HINTS)
def test_methods_with_hints_have_a_positive_weight_and_use_the_teacher(name):
    assert DISTILLERS[name].weight > 0
    assert DISTILLERS[name].uses_teacher


@pytest.mark.parametrize(("name", "weight"), [("fitnet", 100), ("at", 1000), ("vid", 1), ("sp", 3000)])
def test_hint_weights_are_those_of_the_common_benchmark(name, weight):
    assert DISTILLERS[name].weight == weight


def test_student_alone_does_without_the_teacher_and_kd_does_not():
    assert not DISTILLERS["ce"].uses_teacher
    assert DISTILLERS["kd"].uses_teacher


def logits(batch=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    return Signals(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=torch.arange(batch) % classes,
        temperature=4.0,
    )


@pytest.mark.parametrize("name", ON_LOGITS)
def test_methods_on_logits_take_the_place_of_kd_and_need_no_hint_points(name):
    entry = DISTILLERS[name]
    assert entry.uses_teacher
    assert not entry.kd
    module = entry.build(Task())
    assert not list(module.parameters())
    signals = logits()
    loss = module(signals)
    loss.backward()
    assert loss.isfinite()
    assert signals.student_logits.grad.norm() > 0
    optimiser = torch.optim.SGD([signals.student_logits], lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        module(signals).backward()
        optimiser.step()
    assert module(signals) < loss


def test_a_sum_is_the_weighted_sum_of_its_parts():
    signals = Signals(
        make_maps("half", 0),
        make_maps("half", 1),
        **{k: v for k, v in vars(logits(batch=4)).items() if "maps" not in k},
    )
    entry = distiller("at+wsl")
    assert (entry.title, entry.weight, entry.hints, entry.kd, entry.parts) == (
        "AT + WSL",
        1.0,
        True,
        False,
        {"at": 1000.0, "wsl": 2.25},
    )
    parts = [DISTILLERS[name].build(task("half"))(signals).item() for name in ("at", "wsl")]
    assert entry.build(task("half"))(signals).item() == pytest.approx(
        1000 * parts[0] + 2.25 * parts[1], rel=1e-5
    )
    assert distiller("at+wsl", (2.0, 3.0)).build(task("half"))(signals).item() == pytest.approx(
        2 * parts[0] + 3 * parts[1], rel=1e-5
    )
    with_kd = distiller("at+kd")
    assert with_kd.kd is False
    expected = 1000 * parts[0] + kd(signals.student_logits, signals.teacher_logits, 4.0).item()
    assert with_kd.build(task("half"))(signals).item() == pytest.approx(expected, rel=1e-5)
    assert distiller("wsl+dkd").hints is False
    assert distiller("fitnet+sp").kd is True
    assert len(list(distiller("fitnet+sp").build(task("half")).parameters())) == len(
        list(DISTILLERS["fitnet"].build(task("half")).parameters())
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("atx", r"unknown method 'atx' \(did you mean 'at'\?\)"),
        ("at+spp", r"unknown part of the method at\+spp 'spp' \(did you mean 'sp'\?\)"),
        ("at+ce", r"unknown part of the method at\+ce 'ce'"),
        ("at+at", "the method at\\+at names a part more than once"),
    ],
)
def test_methods_that_do_not_exist_are_refused_with_the_valid_ones(method, message):
    with pytest.raises(SettingsError, match=message):
        distiller(method)


def test_semckd_weighs_every_teacher_point_for_every_student_point():
    module = build("semckd", "all-kinds")
    students, teachers = make_maps("all-kinds", 0, batch=5), make_maps("all-kinds", 1, batch=5)
    expected = 0.0
    queries = [
        F.normalize(net(module._described(s)), dim=1) for net, s in zip(module.queries, students, strict=True)
    ]
    keys = [
        F.normalize(net(module._described(t)), dim=1) for net, t in zip(module.keys, teachers, strict=True)
    ]
    for i, student in enumerate(students):
        for j, teacher in enumerate(teachers):
            side = min(student.shape[2], teacher.shape[2])
            predicted = module.regressors[i][j](F.adaptive_avg_pool2d(student, side))
            for image in range(5):
                scores = [math.exp((queries[i][image] @ key[image]).item()) for key in keys]
                error = (predicted[image] - F.adaptive_avg_pool2d(teacher, side)[image]).square().mean()
                expected += scores[j] / sum(scores) * error.item() / 5 / len(students)
    assert module(Signals(students, teachers)).item() == pytest.approx(expected, rel=1e-4)
