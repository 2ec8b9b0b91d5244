"""The published definition of each loss, image by image in numpy: an independent route to each.

``s`` and ``t`` are the student's and the teacher's: maps [B, C, H, W], embeddings [B, D], logits
[B, classes].
"""

import math
from itertools import pairwise, product

import numpy as np

# ---- parts


def softmax(row):
    powers = np.exp(row)
    return powers / powers.sum()


def divergence(p, q):
    """Of p from q, in nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy(row, label):
    return -math.log(softmax(row)[label])


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b) + 1e-8)


def unit(vector):
    """Scaled to length 1; of no length, as it is."""
    return vector / (math.sqrt(vector @ vector) or 1)


def huber(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def pooled(x, height, width):
    """Adaptive average pooling of one [C, H, W] map."""
    result = np.empty((len(x), height, width))
    for i, j in product(range(height), range(width)):
        top, bottom = i * x.shape[1] // height, math.ceil((i + 1) * x.shape[1] / height)
        left, right = j * x.shape[2] // width, math.ceil((j + 1) * x.shape[2] / width)
        result[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    return result


def smaller(s, t):
    """Pairs of maps [C, H, W], both pooled to the smaller size."""
    size = np.minimum(s.shape[2:], t.shape[2:])
    return [(pooled(a, *size), pooled(b, *size)) for a, b in zip(s, t, strict=True)]


def attention(x):
    """Mean of squares over the channels of one map, as a unit vector over places."""
    return unit((x**2).mean(0).flatten())


# ---- on logits


def kd(s, t, temperature):
    rows = zip(s / temperature, t / temperature, strict=True)
    return temperature**2 * np.mean([divergence(softmax(b), softmax(a)) for a, b in rows])


def weighted_soft_labels(s, t, target, temperature):
    total = 0.0
    for a, b, label in zip(s, t, target, strict=True):
        weight = 1 - math.exp(-cross_entropy(a, label) / (cross_entropy(b, label) + 1e-7))
        total -= weight * (softmax(b / temperature) @ np.log(softmax(a / temperature)))
    return temperature**2 * total / len(s)


def decoupled_kd(s, t, target, alpha, beta, temperature):
    total = 0.0
    for a, b, label in zip(s / temperature, t / temperature, target, strict=True):
        two = [(p[label], 1 - p[label]) for p in (softmax(b), softmax(a))]
        rest = [softmax(np.delete(row, label)) for row in (b, a)]
        total += alpha * divergence(*two) + beta * divergence(*rest)
    return temperature**2 * total / len(s)


def dist(s, t, beta, gamma, temperature):
    p, q = (np.array([softmax(row) for row in x / temperature]) for x in (s, t))
    between = 1 - np.mean([pearson(a, b) for a, b in zip(p, q, strict=True)])
    within = 1 - np.mean([pearson(a, b) for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * between + gamma * within)


def standardised_kd(s, t, temperature):
    scores = [np.array([(row - row.mean()) / (row.std(ddof=1) + 1e-7) for row in x]) for x in (s, t)]
    return kd(*scores, temperature)


# ---- on maps


def hint(s, t):
    return sum((a - b) ** 2 for a, b in zip(s.flatten(), t.flatten(), strict=True)) / s.size


def attention_transfer(students, teachers):
    points = zip(students, teachers, strict=True)
    return sum(np.mean([(attention(a) - attention(b)) ** 2 for a, b in smaller(s, t)]) for s, t in points)


def factor_transfer(s, t):
    return np.mean([abs(attention(a) - attention(b)) for a, b in smaller(s, t)])


def variational_information(mean, variance, teacher):
    channels = zip(mean.swapaxes(0, 1), variance, teacher.swapaxes(0, 1), strict=True)
    return np.mean([0.5 * ((m - t) ** 2 / v + math.log(v)) for m, v, t in channels])


def neuron_selectivity(s, t):
    total = 0.0
    for images in smaller(s, t):
        a, b = (np.array([unit(channel.flatten()) for channel in image]) for image in images)
        kernels = [np.mean([(x @ y) ** 2 for x in p for y in q]) for p, q in ((b, b), (a, a), (a, b))]
        total += kernels[0] + kernels[1] - 2 * kernels[2]
    return total / len(s)


def activation_boundary(s, t, margin=1.0):
    total = 0.0
    for a, b in zip(s.flatten(), t.flatten(), strict=True):
        if b <= 0:
            total += max(a + margin, 0) ** 2
        else:
            total += max(margin - a, 0) ** 2
    return total / len(s)


def flow(a, b):
    """M[c, d] of two maps of one image."""
    size = np.minimum(a.shape[1:], b.shape[1:])
    a, b = pooled(a, *size), pooled(b, *size)
    return np.array([[np.mean(x * y) for y in b] for x in a])


def flow_of_solution(students, teachers):
    total = 0.0
    for (s, s_next), (t, t_next) in zip(pairwise(students), pairwise(teachers), strict=True):
        images = zip(s, s_next, t, t_next, strict=True)
        total += np.mean([(flow(a, b) - flow(c, d)) ** 2 for a, b, c, d in images])
    return total


def hierarchical_context(students, teachers):
    total = 0.0
    for s, t in zip(students, teachers, strict=True):
        sizes = [s.shape[2], *(n for n in (4, 2, 1) if n < s.shape[2])]
        errors = [
            np.mean([(pooled(a, n, n) - pooled(b, n, n)) ** 2 for a, b in zip(s, t, strict=True)])
            for n in sizes
        ]
        total += np.average(errors, weights=[0.5**level for level in range(len(sizes))])
    return total


# ---- between images


def similarity_preserving(s, t):
    grams = []
    for x in (s, t):
        rows = [image.flatten() for image in x]
        grams.append([unit(np.array([a @ b for b in rows])) for a in rows])
    return np.mean((np.array(grams[0]) - np.array(grams[1])) ** 2)


def correlation_congruence(s, t):
    rows = [abs(a - b) for a, b in zip(s, t, strict=True)]
    return np.mean([a @ b for a, b in pairwise(rows)])


def distances_and_angles(rows):
    """Images at one place are 1e-6 apart and have no angle; an image and itself are not apart."""
    images = range(len(rows))
    distances = [max(math.dist(rows[i], rows[j]), 1e-6 * (i != j)) for i in images for j in images]
    mean = np.mean([d for d in distances if d > 0])
    angles = [unit(b - a) @ unit(c - a) for a in rows for b in rows for c in rows]
    return [d / mean for d in distances], angles


def relational(s, t, distance_weight=25, angle_weight=50):
    pairs = zip(distances_and_angles(s), distances_and_angles(t), strict=True)
    distance, angle = (np.mean([huber(a - b) for a, b in zip(*pair, strict=True)]) for pair in pairs)
    return distance_weight * distance + angle_weight * angle


def probabilistic_transfer(s, t):
    chances = []
    for x in (s, t):
        rows = [row / (math.sqrt(row @ row) + 1e-7) for row in x]
        closeness = np.array([[(a @ b + 1) / 2 for b in rows] for a in rows])
        chances.append(closeness / closeness.sum(1, keepdims=True))
    p, q = chances
    return np.mean(q * np.log((q + 1e-7) / (p + 1e-7)))


def contrastive_in_batch(s, t, temperature):
    losses = []
    for anchors, candidates in ((s, t), (t, s)):
        for i, anchor in enumerate(anchors):
            scores = np.array([unit(anchor) @ unit(c) / temperature for c in candidates])
            losses.append(cross_entropy(scores, i))
    return np.mean(losses)


def contrastive_memory(own, others, counted, images):
    total = 0.0
    for positive, row, marks in zip(own, others, counted, strict=True):
        negatives = row[marks]
        noise = len(negatives) / images
        total -= math.log(positive / (positive + noise + 1e-7))
        total -= sum(math.log(noise / (o + noise + 1e-7)) for o in negatives)
    return total / len(own)
