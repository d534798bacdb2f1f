"""The networks of the pruning benchmark, and how each is trained before anything is removed.

    mlp              300 and 100 hidden units, dropout 0.2 while it is trained
    lenet_300_100    the same by its usual recipe: SGD with momentum, no dropout
    lenet5           20 and 50 maps of 5 x 5, 500 hidden units; of digits, which are too small for it, 16 and 32 maps
                     of 3 x 3 and 64 hidden units (cnn)
    cnn1d            three convolutions of 25 channels, as the authors of MNIST-1D have it
    resnet8, resnet14, resnet20, vgg8    as the service builds them
    vit              a transformer of 3 blocks, 4 heads and width 48, over patches or token ids

A teacher is a function of (network, data, seed), and is kept in a folder for temporary files.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.pruning_data import PADDING, Data
from service.contract.specs import SGD, AdamW, Cosine, Optimizer, Training
from workers.distillation.losses import hard_loss
from workers.journal import Silent
from workers.students.architectures import build
from workers.training.loop import train

CPU = torch.device("cpu")
HEADS = 4


class SmallConvolutional(nn.Module):
    """(B, 1, 8, 8) -> (B, classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Convolutional1d(nn.Module):
    """(B, 1, 40) -> (B, classes)."""

    def __init__(self, num_classes: int, channels: int = 25) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 5, stride=2, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(channels * 5, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        return self.fc(torch.flatten(x, 1))


class Attention(nn.Module):
    """(B, T, D) -> (B, T, D), its projections apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Patches of images or series, or token ids -> (B, classes), by the mean over places."""

    def __init__(self, data: Data, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.embed: nn.Module
        if data.vocabulary is not None:
            self.embed, length = nn.Embedding(data.vocabulary, width, padding_idx=PADDING), data.input_shape[0]
        elif len(data.input_shape) == 2:
            self.embed, length = nn.Conv1d(1, width, 4, 4), data.input_shape[1] // 4
        else:
            side = data.input_shape[1] // 4
            self.embed, length = nn.Conv2d(1, width, side, side), 16
        self.embeds_ids = data.vocabulary is not None
        self.positions = nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, data.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if not self.embeds_ids:
            x = x.flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x + self.positions)).mean(1))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained from new weights, and for how long it recovers."""

    epochs: int
    optimizer: Optimizer = field(default_factory=AdamW)
    batch_size: int = 64
    recovery_epochs: int = 3
    recovery_optimizer: Optimizer = field(default_factory=AdamW)

    def training(self, epochs: int | None = None) -> Training:
        """From new weights."""
        return self._training(self.epochs if epochs is None else epochs, self.optimizer, warmup=1.0)

    def recovery(self, epochs: int | None = None) -> Training:
        """After pruning."""
        return self._training(self.recovery_epochs if epochs is None else epochs, self.recovery_optimizer, warmup=0.0)

    def _training(self, epochs: int, optimizer: Optimizer, *, warmup: float) -> Training:
        return Training(
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=optimizer,
            schedule=Cosine(warmup_epochs=min(warmup, epochs - 1)),
            precision="float32",
            select="last",
        )


def built(name: str, data: Data, seed: int, **options: float) -> nn.Module:
    return build(name, options, input_shape=data.input_shape, num_classes=data.num_classes, seed=seed)


def seeded(network: Callable[[Data], nn.Module]) -> Callable[[Data, int], nn.Module]:
    """A network of this module with weights drawn from a seed."""

    def make(data: Data, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return network(data)

    return make


def lenet5(data: Data, seed: int) -> nn.Module:
    if data.input_shape[1] < 16:
        return seeded(lambda data: SmallConvolutional(data.num_classes))(data, seed)
    return built("lenet5", data, seed)


MOMENTUM = SGD(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
NETWORKS: dict[str, tuple[Callable[[Data, int], nn.Module], Recipe]] = {
    "mlp": (lambda data, seed: built("mlp", data, seed, dropout=0.2), Recipe(30, AdamW(lr=2e-3))),
    "lenet_300_100": (lambda data, seed: built("lenet_300_100", data, seed), Recipe(30, MOMENTUM)),
    "lenet5": (lenet5, Recipe(20, AdamW(lr=2e-3))),
    "cnn1d": (seeded(lambda data: Convolutional1d(data.num_classes)), Recipe(60, AdamW(lr=5e-3))),
    "resnet8": (lambda data, seed: built("resnet8", data, seed), Recipe(12, MOMENTUM)),
    "resnet14": (lambda data, seed: built("resnet14", data, seed), Recipe(12, MOMENTUM)),
    "resnet20": (lambda data, seed: built("resnet20", data, seed), Recipe(12, MOMENTUM)),
    "vgg8": (lambda data, seed: built("vgg", data, seed, depth=8), Recipe(8, MOMENTUM)),
    "vit": (seeded(Transformer), Recipe(40, AdamW(lr=2e-3))),
}
# Epochs on data of other sizes than MNIST's 4,000 training digits.
EPOCHS = {
    "mnist": {"mlp": 15, "lenet_300_100": 15, "lenet5": 8, "resnet8": 4, "resnet14": 4, "resnet20": 4, "vgg8": 3},
    "digits": {"resnet8": 30, "resnet14": 30, "resnet20": 30, "vgg8": 15},
    "news": {"mlp": 8, "lenet_300_100": 8},
    "newsids": {"vit": 10},
}


def recipe_of(name: str, data: Data) -> Recipe:
    recipe = NETWORKS[name][1]
    epochs = EPOCHS.get(data.name, {}).get(name, recipe.epochs)
    batch_size = 128 if data.name == "mnist" else recipe.batch_size
    return dataclasses.replace(recipe, epochs=epochs, batch_size=batch_size)


def fresh(name: str, data: Data, seed: int) -> nn.Module:
    return NETWORKS[name][0](data, seed)


def cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / "stillhouse-pruning-quality"
    folder.mkdir(exist_ok=True)
    return folder


def teacher(name: str, data: Data, seed: int) -> nn.Module:
    """Trained on the training split's labels; in evaluation mode, and without dropout from here on."""
    network, place = fresh(name, data, seed), cache_folder() / f"{name}-{data.name}-{seed}.pt"
    if place.exists():
        network.load_state_dict(torch.load(place))
    else:
        training = recipe_of(name, data).training()
        train(network, data.for_training, by_labels, training, seed=seed, device=CPU, journal=Silent())
        torch.save(network.state_dict(), place)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.eval()


def by_labels(logits: Tensor, _taught: Tensor | None, labels: Tensor | None) -> Tensor:
    return hard_loss(logits, labels)
