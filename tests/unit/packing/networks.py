"""What people might pack: networks that are taken, and networks that are not."""

import torch
from torch import Tensor, nn


class Good(nn.Module):
    """(B, 1, 8, 8) -> (B, 10), with what depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.features(x)))


class Noisy(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.linalg.inv(x + torch.rand_like(x)))


class Branching(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class OneExample(Good):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).reshape(1, 8))


class FirstExample(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:1]


class ThreeExamples(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if x.shape[0] == 3 else x)


class TwoInputs(Good):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class Pinned(nn.Module):
    """(B, 5, 16) -> (B, 3): an LSTM, whose channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tagger(nn.Module):
    """Token ids (B, T) -> (B, 3), with dropout inside its attention and tied weights nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)).mean(1))


def broken() -> nn.Module:
    raise FileNotFoundError("weights.bin is missing")


ready = Good()
number = 3
