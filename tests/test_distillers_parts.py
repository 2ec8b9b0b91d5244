"""Methods with parts of their own, against loops over their definitions: AB, FT, FSP, ReviewKD, CRD with
memories, SimKD.
"""

import math
from dataclasses import replace

import losses_by_hand as by_hand
import pytest
import torch
import torch.nn.functional as F
from test_distillers import LABELS, build, make_signals, matched
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
        said, wanted = matched(said, teacher)
        for s, t in zip(said.flatten().tolist(), wanted.flatten().tolist(), strict=True):
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
        a, b = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in matched(said, factor))
        total += (a - b).abs().mean().item()
    assert module(later).item() == pytest.approx(total, rel=1e-4)
    assert DISTILLERS["ft"].weight * module.REBUILDING == pytest.approx(1)


@pytest.mark.parametrize("relation", RELATIONS)
def test_flow_adapts_channels_only_where_they_differ(relation):
    module, signals = build("fsp", relation), make_signals(relation)
    a, b = (adapt(s) for adapt, s in zip(module.adapters, signals.student_maps, strict=True))
    flows = []
    for x, y in ((a, b), signals.teacher_maps):
        x, y = matched(x, y)
        flows.append(torch.einsum("bchw,bdhw->bcd", x, y) / x.shape[2] ** 2)
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
        if below is not None:
            below = nearest(below, own.shape[2:])
            shares = module.attention[i](torch.cat([own, below], 1))
            own = own * shares[:, :1] + below * shares[:, 1:2]
        below = nearest(own, teacher.shape[2:])
        total += by_hand.hierarchical_context([module.outward[i](below).detach().numpy()], [teacher.numpy()])
    assert module(signals).item() == pytest.approx(total, rel=1e-4)


def nearest(maps, size):
    """Maps at another size, every place from the nearest before it."""
    rows, columns = (torch.arange(n) * have // n for n, have in zip(size, maps.shape[2:], strict=True))
    return maps[:, :, rows][:, :, :, columns]


def crd(negatives=None, labels=LABELS, seed=0):
    torch.manual_seed(seed)
    method = DISTILLERS["crd"].build
    few = type("Few", (method,), {"NEGATIVES": negatives or method.NEGATIVES})
    shapes = [[(3, 4, 4), (6, 2, 2)], [(5, 4, 4), (4, 2, 2)]]
    return few(Task(*([torch.Size(shape) for shape in side] for side in shapes), labels))


@torch.no_grad()
def naive_crd(module, signals, memories, constants):
    """One step by the published way: every image's own list of rows, gathered from the memory."""
    chosen, counted = module._draw(signals)
    rows = [[int(i), *chosen[marks].tolist()] for i, marks in zip(signals.indices, counted, strict=True)]
    total = 0.0
    for point, (s, t) in enumerate(signals.points):
        nets = module.students[point], module.teachers[point]
        embedded = [F.normalize(net(x.mean((2, 3))), dim=1) for net, x in zip(nets, (s, t), strict=True)]
        for side, query in enumerate(embedded):
            memory = memories[1 - side][point]
            scores = [torch.exp(memory[own] @ q / 0.07) for own, q in zip(rows, query, strict=True)]
            if (point, side) not in constants:
                constants[point, side] = float(torch.cat(scores).mean()) * len(memory)
            for row in scores:
                own, *others = (row / constants[point, side]).tolist()
                noise = len(others) / len(memory)
                total -= math.log(own / (own + noise + 1e-7)) / len(scores)
                total -= sum(math.log(noise / (o + noise + 1e-7)) for o in others) / len(scores)
        for side, vectors in enumerate(embedded):
            for i, vector in zip(signals.indices.tolist(), vectors, strict=True):
                mixed = 0.5 * memories[side][point][i] + 0.5 * vector
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
