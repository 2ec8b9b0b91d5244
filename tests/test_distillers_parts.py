"""Methods with parts of their own, against loops over their definitions: AB, FT, FSP, ReviewKD, CRD with
memories, SimKD.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_distillers import LABELS, build, make_signals
from torch import nn

from pursuhint_lib.distillers import (
    DISTILLERS,
    ReusedClassifier,
    Signals,
    Task,
    in_first_stage,
    linear_classifier,
    warmth,
)
from pursuhint_lib.models import build_model
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.taps import candidate_points

RELATIONS = ["equal", "half", "double", "quarter", "uneven"]


def test_stages_and_growing_weights_follow_the_public_schedules():
    assert [in_first_stage(epoch, 240) for epoch in (0, 29, 30, 239)] == [True, True, False, False]
    assert [sum(in_first_stage(e, epochs) for e in range(epochs)) for epochs in (1, 2, 8, 12, 20)] == [
        1,
        1,
        1,
        2,
        3,
    ]
    assert [warmth(epoch, 240) for epoch in (0, 9, 19, 20, 239)] == pytest.approx([0.05, 0.5, 1, 1, 1])
    assert warmth(0, 1) == 1


@pytest.mark.parametrize("relation", RELATIONS)
def test_activation_boundary_counts_neurons_on_the_wrong_side(relation):
    module, signals = build("ab", relation), make_signals(relation)
    total = 0.0
    for i, (student, teacher) in enumerate(signals.points):
        said = module.connectors[i](student).detach()
        side = min(said.shape[2], teacher.shape[2])
        said, wanted = (F.adaptive_avg_pool2d(x, side).flatten().tolist() for x in (said, teacher))
        for s, t in zip(said, wanted, strict=True):
            error = (s + 1) ** 2 if t <= 0 and s > -1 else (s - 1) ** 2 if t > 0 and s <= 1 else 0
            # The deeper of the two points counts in full, the other one half.
            total += 3 / 1000 * (0.5, 1.0)[i] * error / 4
    assert module(signals).item() == pytest.approx(total, rel=1e-5)
    assert all([type(part) for part in connector[1:]] == [nn.BatchNorm2d] for connector in module.connectors)


@pytest.mark.parametrize("relation", ["equal", "half", "double"])
def test_the_sign_of_a_teachers_value_can_be_told_after_its_relu(relation):
    signals, module = make_signals(relation), build("ab", relation)
    after = replace(signals, teacher_maps=[F.relu(t) for t in signals.teacher_maps])
    assert module(signals).item() == pytest.approx(module(after).item(), rel=1e-6)


def test_factor_transfer_rebuilds_first_and_then_teaches():
    module = build("ft", "half")
    first, later = make_signals("half", epoch=0), make_signals("half", epoch=7)
    rebuilt = sum(
        (rebuild(paraphrase(t)) - t).square().mean()
        for paraphrase, rebuild, t in zip(
            module.paraphrasers, module.rebuilders, first.teacher_maps, strict=True
        )
    )
    assert module(first).item() == pytest.approx(rebuilt.item() / 200, rel=1e-5)
    total = 0.0
    for paraphrase, translate, (s, t) in zip(
        module.paraphrasers, module.translators, later.points, strict=True
    ):
        said, factor = translate(s), paraphrase(t)
        assert (said.shape[1], factor.shape[1]) == (t.shape[1] // 2, t.shape[1] // 2)
        side = min(said.shape[2], factor.shape[2])
        maps = [F.adaptive_avg_pool2d(x, side).square().mean(1).flatten(1) for x in (said, factor)]
        a, b = (x / x.norm(dim=1, keepdim=True) for x in maps)
        total += (a - b).abs().mean().item()
    assert module(later).item() == pytest.approx(total, rel=1e-4)
    assert DISTILLERS["ft"].weight * module.REBUILDING == pytest.approx(1)


@pytest.mark.parametrize("relation", RELATIONS)
def test_flow_adapts_channels_only_where_they_differ(relation):
    module, signals = build("fsp", relation), make_signals(relation)
    a, b = (adapt(s) for adapt, s in zip(module.adapters, signals.student_maps, strict=True))
    flows = []
    for x, y in ((a, b), signals.teacher_maps):
        side = min(x.shape[2], y.shape[2])
        x, y = F.adaptive_avg_pool2d(x, side), F.adaptive_avg_pool2d(y, side)
        flows.append(torch.einsum("bchw,bdhw->bcd", x, y) / side**2)
    assert module(signals).item() == pytest.approx((flows[0] - flows[1]).square().mean().item(), rel=1e-4)
    same = DISTILLERS["fsp"].build(
        Task([torch.Size((3, 4, 4)), torch.Size((4, 2, 2))], [torch.Size((3, 8, 8)), torch.Size((5, 2, 2))])
    )
    assert [type(adapt) for adapt in same.adapters] == [nn.Identity, nn.Conv2d]


@pytest.mark.parametrize("relation", [*RELATIONS, "all-kinds"])
def test_review_blends_every_level_with_all_deeper_ones(relation):
    module, signals = build("reviewkd", relation), make_signals(relation)
    below, total = None, 0.0
    for i in reversed(range(len(signals.student_maps))):
        own, teacher = module.inward[i](signals.student_maps[i]), signals.teacher_maps[i]
        height, width = own.shape[2:]
        if below is not None:
            rows, columns = (torch.arange(n) * below.shape[d] // n for n, d in ((height, 2), (width, 3)))
            below = below[:, :, rows][:, :, :, columns]
            shares = module.attention[i](torch.cat([own, below], 1))
            own = own * shares[:, 0][:, None] + below * shares[:, 1][:, None]
        rows, columns = (
            torch.arange(n) * s // n for n, s in ((teacher.shape[2], height), (teacher.shape[3], width))
        )
        below = own[:, :, rows][:, :, :, columns]
        said = module.outward[i](below)
        sizes = [said.shape[2], *[n for n in (4, 2, 1) if n < said.shape[2]]]
        errors = [
            F.mse_loss(F.adaptive_avg_pool2d(said, n), F.adaptive_avg_pool2d(teacher, n)).item()
            for n in sizes
        ]
        total += sum(error / 2**level for level, error in enumerate(errors)) / sum(
            0.5**level for level in range(len(errors))
        )
    assert module(signals).item() == pytest.approx(total, rel=1e-4)


def crd(negatives=None, labels=LABELS, seed=0):
    torch.manual_seed(seed)
    cls = DISTILLERS["crd"].build
    previous, cls.NEGATIVES = cls.NEGATIVES, negatives or cls.NEGATIVES
    try:
        return cls(
            Task(
                [torch.Size((3, 4, 4)), torch.Size((6, 2, 2))],
                [torch.Size((5, 4, 4)), torch.Size((4, 2, 2))],
                labels,
            )
        )
    finally:
        cls.NEGATIVES = previous


@torch.no_grad()
def naive_crd(module, signals, memories, constants):
    """One step by the published way: every image's own list of rows, gathered from the memory."""
    chosen, counted = module._draw(signals)
    total = 0.0
    for point, (s, t) in enumerate(signals.points):
        v = [
            F.normalize(net(maps.mean((2, 3))), dim=1)
            for net, maps in ((module.students[point], s), (module.teachers[point], t))
        ]
        for side, query in enumerate(v):
            memory = memories[1 - side][point]
            lists = [[int(i), *chosen[row].tolist()] for i, row in zip(signals.indices, counted, strict=True)]
            scores = [
                [math.exp(float(memory[i] @ q) / 0.07) for i in rows]
                for rows, q in zip(lists, query, strict=True)
            ]
            if (point, side) not in constants:
                flat = [score for row in scores for score in row]
                constants[point, side] = sum(flat) / len(flat) * len(memory)
            for row in scores:
                own, *others = [score / constants[point, side] for score in row]
                noise = len(others) / len(memory)
                total -= math.log(own / (own + noise + 1e-7)) / len(scores)
                total -= sum(math.log(noise / (o + noise + 1e-7)) for o in others) / len(scores)
        for side, embedded in enumerate(v):
            for i, row in zip(signals.indices.tolist(), embedded.detach(), strict=True):
                mixed = 0.5 * memories[side][point][i] + 0.5 * row
                memories[side][point][i] = mixed / mixed.norm()
    return total


@pytest.mark.parametrize("negatives", [None, 5])
def test_contrast_with_memories_equals_the_published_steps(negatives):
    ours, theirs = crd(negatives), crd(negatives)
    memories, constants = [theirs.student_memory.clone(), theirs.teacher_memory.clone()], {}
    for epoch in (0, 0, 1):
        signals = make_signals("equal", epoch=epoch)
        assert ours(signals).item() == pytest.approx(
            naive_crd(theirs, signals, memories, constants), rel=1e-4
        )
    torch.testing.assert_close(ours.student_memory, memories[0])
    torch.testing.assert_close(ours.teacher_memory, memories[1])
    torch.testing.assert_close(
        ours.constants,
        torch.tensor([[constants[p, side] for side in (0, 1)] for p in (0, 1)]),
        rtol=1e-4,
        atol=0,
    )


def test_negatives_are_of_other_classes_as_many_as_wanted_and_all_equally_likely():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    module = crd(negatives=4, labels=labels)
    signals = Signals(labels=labels[:6], epoch=0)
    seen = torch.zeros(6, len(labels))
    draws = 4000
    for _ in range(draws):
        chosen, counted = module._draw(signals)
        assert len(chosen.unique()) == len(chosen)
        assert (counted.sum(1) == 4).all()
        for image in range(6):
            seen[image, chosen[counted[image]]] += 1
    for image in range(6):
        other = labels != labels[image]
        assert (seen[image, ~other] == 0).all()
        expected = draws * 4 / int(other.sum())
        assert ((seen[image, other] - expected).abs() < 5 * expected**0.5).all()


def test_draws_depend_on_seed_and_epoch_only_so_that_a_resumed_training_repeats_them():
    def draws(module, epochs):
        return [module._draw(Signals(labels=LABELS[:4], epoch=epoch))[0].tolist() for epoch in epochs]

    whole, resumed = draws(crd(4), (0, 0, 1, 1)), draws(crd(4), (1, 1))
    assert whole[2:] == resumed
    assert whole[:2] != whole[2:]
    assert draws(crd(4, seed=1), (0, 0)) != whole[:2]


def test_memories_are_kept_in_a_checkpoint_and_refuse_a_single_class():
    assert {"student_memory", "teacher_memory", "constants"} <= set(crd().state_dict())
    with pytest.raises(ValueError, match="all 4 are of one class"):
        crd(labels=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("name", ["resnet14", "resnet8x4", "ResNet50", "ShuffleV1", "torchvision/resnet18"])
def test_a_classifier_on_the_mean_of_the_last_sub_block_is_found(name):
    image = torch.zeros(1, 3, 32, 32)
    model = build_model(name, 10)
    last = candidate_points(model, image)[-1]
    classifier, shape = linear_classifier(model, name, last, image)
    maps = []
    model.get_submodule(last).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    answers = model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(classifier(maps[0].mean((2, 3))), answers, rtol=1e-3, atol=1e-4)
    assert shape == maps[0].shape[1:]


@pytest.mark.parametrize("name", ["MobileNetV2", "torchvision/mobilenet_v3_small", "torchvision/vgg11_bn"])
def test_a_classifier_on_anything_else_is_refused_with_the_reason(name):
    image = torch.zeros(1, 3, 32, 32)
    model = build_model(name, 10)
    with pytest.raises(
        SettingsError,
        match=rf"classifier of {name}, which must then be linear in the mean of the last sub-block",
    ):
        linear_classifier(model, name, candidate_points(model, image)[-1], image)


@pytest.mark.parametrize(("size", "pooled"), [(4, 2), (2, 2), (1, 1)])
def test_a_student_with_a_reused_classifier_answers_through_it_and_never_trains_it(size, pooled):
    student = nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(3, 6, 1), nn.Flatten(), nn.LazyLinear(5))
    student(torch.zeros(2, 3, 8, 8))
    classifier = nn.Linear(4, 7)
    network = ReusedClassifier(student, "1", torch.Size((6, size, size)), classifier, torch.Size((4, 2, 2)))
    images = torch.randn(3, 3, 8, 8)
    features = F.adaptive_avg_pool2d(student[1](student[0](images)), pooled)
    answers = network(images)
    assert answers.shape == (3, 7)
    network.eval()
    torch.testing.assert_close(network(images), classifier(network.projector(features).mean((2, 3))))
    answers.sum().backward()
    assert network.classifier.weight.grad is None
    assert student[1].weight.grad.norm() > 0
    assert student[3].weight.grad is None
