"""Learners for methods of the finetune slot: batches are tensors, losses are known in closed form."""

from contextlib import contextmanager

import torch
from quadratic import TinyLearner
from torch import nn
from torch.nn.functional import cross_entropy

from harness.protocols import Prediction
from harness.training.pieces import cut


class UserLearner(TinyLearner):
    """Satisfies ``protocols.Learner`` for a module that makes a loss, or logits, of a batch.

    ``seen`` keeps every batch that a gradient was taken on.
    """

    def __init__(self, module, loss=None):
        super().__init__(module, {})
        self.steps_taken = 0
        self.seen = []
        self._loss = loss

    def loss(self, piece):
        if self._loss is None:
            prediction = self.predict(piece)
            return cross_entropy(prediction.logits, prediction.targets)
        self.seen.append(piece.batch)
        return self._loss(self.module, piece.batch)

    def predict(self, piece):
        batch = piece.batch
        logits = self.module(batch)
        supervised = batch["labels"][:, 1:] != -100
        return Prediction(logits[:, :-1][supervised], batch["labels"][:, 1:][supervised], supervised.sum())

    @contextmanager
    def with_weights(self, values):
        kept = [weight.detach().clone() for weight in self.trainables]
        self.put(values)
        yield
        self.put(kept)

    def step(self, learning_rate):
        """Take a step of plain gradient descent on what was written."""
        self.put([weight - learning_rate * weight.grad for weight in self.trainables])
        self.steps_taken += 1

    def put(self, values):
        """Give the weights other values."""
        with torch.no_grad():
            for weight, value in zip(self.trainables, values, strict=True):
                weight.copy_(value)

    @property
    def written(self):
        """What the last step wrote, as a list of numbers."""
        return torch.cat([weight.grad.flatten() for weight in self.trainables]).tolist()


class CutLearner(UserLearner):
    """A learner whose pieces know the supervised positions of their examples, as those of the product do."""

    def pieces(self, batch):
        return cut({"attention_mask": torch.ones_like(batch["labels"]), **batch}, None, device=torch.device("cpu"))


class Safety:
    """Gives safety batches in turn, and counts them."""

    def __init__(self, *batches):
        self._batches = batches
        self.roles = []

    def next(self, role):
        batch = self._batches[len(self.roles) % len(self._batches)]
        self.roles.append(role)
        return batch


class Pair(nn.Module):
    """Two weights in two tensors."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([float(first)]))
        self.second = nn.Parameter(torch.tensor([float(second)]))

    @property
    def both(self):
        return torch.cat([self.first, self.second])
