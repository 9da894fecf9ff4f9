"""A mask that is learned in the place of the weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunelab.pruning.masks import Masks
from prunelab.pruning.prunable import prunable_names


class LearnedSupermask(nn.Module):
    """`net` with frozen weights w and trained scores s, one for each prunable weight: it computes with w * m.

    In train mode every forward pass draws m ~ Bernoulli(sigmoid(s)) from torch's global generator. Gradients go
    straight through the draw: dL/ds = dL/dm * sigmoid'(s). All parameters of `net` are frozen, biases and norms too.
    rescale: w * m * size / sum(m) in each layer (dynamic weight rescaling); in gradients this factor is a constant.
    evaluate: the mask in eval mode. sample: drawn as in training, anew for each batch, so that what is measured is the
    stochastic network that was trained. threshold: s > 0, the likelier value of each m.
    initial_score: of all scores at the start; 0 is probability 1/2. Nothing sets the density: higher scores at the
    start end in denser masks.
    Its state dict is that of `net` under `net.`, and the scores under `scores.`, `/` in place of the dots of names.
    Raises: PruningError if `net` has no prunable weights (`prunable_names`).
    Reference: Zhou, Lan, Liu, Yosinski 2019, "Deconstructing Lottery Tickets", arXiv 1905.01067, section 5.
    """

    def __init__(
        self,
        net: nn.Module,
        rescale: bool = True,
        evaluate: Literal["sample", "threshold"] = "sample",
        initial_score: float = 0.0,
    ) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.rescale = rescale
        self.evaluate = evaluate
        self._names = prunable_names(net)
        weights = dict(net.named_parameters())
        self.scores = nn.ParameterDict(
            {_key(name): torch.full_like(weights[name], initial_score) for name in self._names}
        )

    def forward(self, *inputs: Any) -> Any:
        weights = dict(self.net.named_parameters())
        effective = {name: weights[name] * self._factors(self.scores[_key(name)]) for name in self._names}
        return functional_call(self.net, effective, inputs)

    def masks(self) -> Masks:
        """The weights with s > 0, those that are likelier drawn than not; names as in `net.named_parameters()`."""
        return Masks({name: self.scores[_key(name)].detach() > 0 for name in self._names})

    def _factors(self, scores: Tensor) -> Tensor:
        """m * size / sum(m), or m; in gradients, sigmoid(s) stands for m."""
        probabilities = scores.sigmoid()
        if self.training or self.evaluate == "sample":
            drawn = probabilities.detach().bernoulli()
        else:
            drawn = (scores.detach() > 0).to(scores.dtype)
        mask = drawn + (probabilities - probabilities.detach())  # adds exactly 0
        # a layer without a weight stays 0
        return mask * (mask.numel() / drawn.sum().clamp(min=1)) if self.rescale else mask


def _key(name: str) -> str:
    """A parameter's name may not hold dots."""
    return name.replace(".", "/")
