"""Small networks that bring a student's map to the teacher's shape."""

from torch import Size, nn


def regressor(student: Size, teacher: Size) -> nn.Sequential:
    """Convolution and BatchNorm from the student's shape [C, H, W] to the teacher's.

    Half or double the size by stride; otherwise a 1×1 convolution, and the larger map is pooled to the
    smaller. (The public code uses one valid convolution of kernel 1 + H_s − H_t where the student is
    larger and refuses the rest; a hint layer away from the stage ends makes every combination possible.)
    """
    (channels, height, _), (out, target, _) = student, teacher
    if height == 2 * target:
        convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1)
    elif 2 * height == target:
        convolution = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)
    else:
        convolution = nn.Conv2d(channels, out, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def pointwise_stack(channels: int, out: int) -> nn.Sequential:
    """Three 1×1 convolutions without bias, with ReLU between: VID's mean, as in the authors' code."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
    )


def bottleneck(channels: int, middle: int, out: int) -> nn.Sequential:
    """1×1, 3×3 and 1×1 convolutions with BatchNorm and ReLU after the first two, as in the code of SemCKD and
    SimKD.
    """
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, out, 1),
    )
