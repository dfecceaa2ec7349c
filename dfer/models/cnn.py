"""VGG19 and ResNet18 for small faces, from random weights (github WuJie1010/Facial-Expression-Recognition.Pytorch).

They are not torchvision's: ResNet18 begins with a 3x3 convolution of stride 1 and has no pooling there, VGG19 ends in
one linear layer, and both drop half of the 512 features before it. Batch norm uses the statistics of a micro-batch.

Letters: B clips, T frames, N pictures (B x T), C channels, H height, W width, K classes.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dfer.emotions import Emotions
from dfer.errors import UsageError, message
from dfer.models.config_clivp_fer import SIDES, CnnConfig
from dfer.models.losses import cross_entropy
from dfer.recognition import ClipBatch, Group, Progress, Recognition, Recognizer

VGG19 = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))
"""Channels of each stage in units of the first one's, and its convolutions; each stage ends in a max pool of 2
(Simonyan & Zisserman, 2015, table 1, E)."""
RESNET18 = ((1, 1), (2, 2), (4, 2), (8, 2))
"""Channels of each stage of two blocks in units of the first one's, and the stride of its first block (He et al., 2016,
table 1)."""
LAST = 8
"""Channels of the last stage of both, in the same units."""
LAST_MAP = 4
"""Side of the average pool after ResNet18's last stage."""
INPUT = f"{SIDES[0]} x {SIDES[0]} to {SIDES[-1]} x {SIDES[-1]} pixels (44 x 44 as published)"


class Cnn(Recognizer):
    """Classifies every frame by a convolutional network and averages the logits of a clip's frames."""

    coupling = "micro_batch"

    def __init__(self, config: CnnConfig, *, emotions: Emotions) -> None:
        super().__init__()
        self.config = config
        self.body = vgg19(config.width) if config.net == "vgg19" else resnet18(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(LAST * config.width, len(emotions))

    @property
    def normalisation(self) -> str:
        """The released code only scales to 0..1."""
        return "none (frames scaled to 0..1)"

    def forward(self, batch: ClipBatch) -> Recognition:
        """Compute logits [B K] of uint8 frames [B T 3 H W]."""
        pictures = rearrange(batch.frames, "b t c h w -> (b t) c h w").to(self.head.weight.dtype) / 255
        logits = rearrange(self.classify(pictures), "(b t) k -> b t k", b=len(batch.frames))
        return Recognition(logits=logits.mean(dim=1))

    def classify(self, pictures: Tensor) -> Tensor:
        """Compute logits [N K] of pictures [N 3 H W], scaled to 0..1. Raises UsageError for another size."""
        _check(pictures)
        features = rearrange(self.body(pictures), "n c 1 1 -> n c")
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def loss(self, out: Recognition, batch: ClipBatch, progress: Progress) -> dict[str, Tensor]:
        """Compute the cross entropy, averaged over the rows that are not padding."""
        return {"cross_entropy": cross_entropy(out.logits, batch)}

    def param_groups(self) -> dict[str, Group]:
        """Return one group, `network`: weight decay applies to all of it, biases and norms included."""
        return {"network": Group(params=list(self.parameters()))}

    def class_parameters(self) -> frozenset[str]:
        """Names of the weights of the last layer, which have one row per class."""
        return frozenset({"head.weight", "head.bias"})


def vgg19(width: int) -> nn.Sequential:
    """Sixteen times convolution with bias, norm and ReLU: [N 3 H W] -> [N 8width H/32 W/32]."""
    layers: list[nn.Module] = []
    channels = 3
    for times, count in VGG19:
        for _ in range(count):
            layers += [nn.Conv2d(channels, times * width, 3, padding=1), nn.BatchNorm2d(times * width)]
            layers.append(nn.ReLU(inplace=True))
            channels = times * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def resnet18(width: int) -> nn.Sequential:
    """Stem, eight blocks and an average pool of 4: [N 3 H W] -> [N 8width H/32 W/32]; blocks round sizes up."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU(inplace=True))
    channels = width
    for times, stride in RESNET18:
        layers += [Block(channels, times * width, stride=stride), Block(times * width, times * width, stride=1)]
        channels = times * width
    return nn.Sequential(*layers, nn.AvgPool2d(LAST_MAP))


class Block(nn.Module):
    """A basic residual block; a 1x1 convolution with norm on the shortcut where the shape changes."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                Projection(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N C H W] -> [N width H/stride W/stride]."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Projection(nn.Conv2d):
    """A 1x1 convolution with a stride as one matrix product.

    Its gradient has the strides of its weight, as DDP's buckets expect; those of a 1x1 convolution may be others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N C H W] -> [N D H/stride W/stride]."""
        kept = rearrange(input[:, :, :: self.stride[0], :: self.stride[1]], "n c h w -> n h w c")
        return rearrange(F.linear(kept, rearrange(self.weight, "d c 1 1 -> d c")), "n h w d -> n d h w")


def _check(pictures: Tensor) -> None:
    """Raise UsageError unless the last map of both networks is one cell."""
    height, width = pictures.shape[-2:]
    if height not in SIDES or width not in SIDES:
        got = f"{height} x {width}"
        raise UsageError(message("frames", expected=INPUT, got=got, do="Set data.size=44."))
