from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prunelab.pruning.errors import PruningError
from prunelab.pruning.flow import NotHeldError
from prunelab.pruning.flow_rounds import FlowRounds
from prunelab.pruning.normalise import layer_normalised
from prunelab.pruning.rescaling import InRange
from prunelab.pruning.scoring import Rounds, Scoring, evaluation_mode, exact_pass
from prunelab.pruning.streamed import StreamedRounds
from prunelab.pruning.surrogate import check_linear, surrogate_output, surrogate_tensors

MAX_FAST = 50_000_000  # weights; above, rounds of path "auto" are lean


@dataclass(frozen=True)
class SynFlow:
    """Score a weight by its share of the network's total path strength: |w| * dR/d|w|, R = 1' prod_l |W_l| 1.

    R is the sum of outputs of the positive linear network inside the network (absolute weights, no shifts, activations
    the identity: `surrogate.py`) on an all-ones input. Needs no data and no labels. The scores of every set of layers
    that separates input from output sum to R, and each hidden unit's scores coming in equal those going out; with 100
    rounds, exponential schedule, this keeps every layer alive up to extreme compression.

    input: "ones", or "mean_abs": mean of |x| over the scoring batches (which it then needs).
    objective: "sum" is R; "l2" takes squares in place of absolute values (path norm); "log" is log R (same ranking).
    activations: "own" keeps the network's activations on the positive signal (conservation then fails for tanh, ...).
    gradient_only: dR/d|w| without the factor |w|. normalise: scores as shares of their layer.
    precision: in float64 masks do not depend on the order of sums (threads, BLAS, device), unless scores at a round's
    threshold differ by no more than rounding, as those along a path without branches do at extreme compression: there
    the order decides. float32 is faster, but the rounds amplify its rounding (1-20 % of the kept weights can differ).
    path: how many rounds are gone through. "plain" scores each by itself, as do `normalise`, allocations, layerwise
    scopes and layer floors. "fast", with the masks of "plain", holds what does not change between rounds and looks at
    kept weights only; on the CPU it then leaves rows and columns without kept weights out of the passes, and where that
    could change a mask of float64 goes back to whole ones (`flow_rounds.py`). "lean" holds nothing but masks and one
    layer's gradients (`streamed.py`; CPU only), in twice the passes, with the same masks but for scores that only
    rounding tells apart: `prune` alone, 100 rounds in float64, network included, took 1.7 times the bytes of 1e8
    float32 weights and 2.6 times those of 1e7, "fast" 16 times (benchmarks/large.py). Scores and masks that are read
    in `on_round`, as a run's summaries do, come on top, and a run's report on its masks takes more than the lean
    rounds. "auto": fast, above 50 million weights lean.

    Should R leave the range of floating point (deep networks), the signal is rescaled by powers of two at modules that
    every path crosses, which changes no bit of the ranking; scores that still overflow raise.
    Raises: PruningError if the network has no such positive linear network (attention, squeeze-excitation, additive
    embeddings), or if more than half of the first round's scores are 0 or any is negative; says which modules.
    Reference: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467, section 6 and algorithm 1.
    Differs from the authors' code: exact counts in place of thresholds, float64, biases and running means left out.
    """

    rounds: int = 100
    input: Literal["ones", "mean_abs"] = "ones"
    objective: Literal["sum", "l2", "log"] = "sum"
    activations: Literal["identity", "own"] = "identity"
    gradient_only: bool = False
    normalise: bool = False
    precision: Literal["float64", "float32"] = "float64"
    path: Literal["auto", "fast", "lean", "plain"] = "auto"
    revives: ClassVar[bool] = False
    allocation: ClassVar[str | None] = None

    @property
    def needs_batches(self) -> bool:
        return self.input == "mean_abs"

    def __post_init__(self) -> None:
        if self.normalise and self.path in ("fast", "lean"):
            raise PruningError(f"path {self.path} compares all scores as they are: it does not go with normalise")

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def _power(self) -> int:
        return 2 if self.objective == "l2" else 1

    def __call__(self, scoring: Scoring) -> dict[str, Tensor]:
        dtype, power = self._dtype, self._power
        weights = {
            name: (weight.to(dtype).abs() ** power).masked_fill_(~scoring.masks[name], 0).requires_grad_()
            for name, weight in scoring.weights().items()
        }
        with evaluation_mode(scoring.net):
            inputs = self._inputs(scoring, dtype)
            if scoring.round == 0 and self.activations == "identity":
                check_linear(scoring.net, inputs)
            tensors = surrogate_tensors(scoring.net, weights, dtype, power)
            flow = _Flow(scoring.net, tensors, self.activations, power)
            scores, total = flow.scores(weights, inputs, gradient_only=self.gradient_only)
        negative = [name for name, values in scores.items() if bool((values < 0).any())]
        if negative:
            raise PruningError(
                f"SynFlow scores are negative in {_modules(negative, scoring.net)}: a part of it subtracts"
            )
        if scoring.round == 0:
            _check_meaningful({name: int((values == 0).sum()) for name, values in scores.items()}, scoring)
        if self.objective == "log" and total > 0:
            scores = {name: values / total for name, values in scores.items()}
        return layer_normalised(scores, scoring.masks) if self.normalise else scores

    def rounds_of(self, scoring: Scoring) -> Rounds | None:
        """The rounds as `path` says; None: each by itself."""
        if self.path == "plain" or self.normalise:  # shares of a layer change with all of its scores
            return None
        with exact_pass([scoring.example_input.device]):
            inputs = self._inputs(scoring, self._dtype)
        if self.activations == "identity":
            with evaluation_mode(scoring.net):
                check_linear(scoring.net, inputs)
        if self.path == "lean" and inputs.device.type != "cpu":
            raise PruningError(f"SynFlow's lean path goes on the CPU only, the network is on {inputs.device}")
        is_large = scoring.masks.num_weights > MAX_FAST and inputs.device.type == "cpu"
        kinds: list[type[StreamedRounds] | type[FlowRounds]] = [StreamedRounds, FlowRounds]
        if self.path != "auto":
            kinds = [StreamedRounds if self.path == "lean" else FlowRounds]
        for kind in kinds if is_large or self.path != "auto" else [FlowRounds]:
            try:
                return kind(
                    scoring.net,
                    scoring.masks,
                    inputs,
                    power=self._power,
                    activations=self.activations,
                    times_weight=not self.gradient_only,
                    of_log=self.objective == "log",
                    check=partial(_check_meaningful, scoring=scoring),
                )
            except NotHeldError as error:
                if self.path != "auto":
                    raise
                warnings.warn(f"SynFlow takes another path: {error}", stacklevel=2)
        return None

    def _inputs(self, scoring: Scoring, dtype: torch.dtype) -> Tensor:
        if not scoring.example_input.is_floating_point():
            raise PruningError(f"SynFlow needs a network with floating point input, not {scoring.example_input.dtype}")
        device = next(iter(scoring.weights().values())).device
        if self.input == "ones":
            return torch.ones_like(scoring.example_input, dtype=dtype, device=device)
        total, num_samples = torch.zeros_like(scoring.example_input, dtype=dtype, device=device), 0
        for inputs, *_ in scoring.batches:
            total += inputs.to(device, dtype).abs().sum(0, keepdim=True)
            num_samples += len(inputs)
        return total / num_samples


@dataclass(frozen=True)
class _Flow:
    """The positive linear network, run plainly or, when R leaves the floating range, with rescaling."""

    net: nn.Module
    tensors: Mapping[str, Tensor]
    activations: str
    power: int

    def run(self, inputs: Tensor) -> Tensor:
        return surrogate_output(self.net, self.tensors, inputs, activations=self.activations, power=self.power)

    def scores(
        self, weights: Mapping[str, Tensor], inputs: Tensor, *, gradient_only: bool
    ) -> tuple[dict[str, Tensor], float]:
        total = InRange(self.net).total(self.run, inputs)
        gradients = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
        pairs = zip(weights.items(), gradients, strict=True)
        if gradient_only:
            return {name: gradient for (name, _), gradient in pairs}, total.item()
        return {name: weight.detach() * gradient for (name, weight), gradient in pairs}, total.item()


def _check_meaningful(num_zero: Mapping[str, int], scoring: Scoring) -> None:
    """Not more than half of the first scores are 0, in an unpruned network."""
    if scoring.masks.density < 1 or 2 * sum(num_zero.values()) <= scoring.masks.num_weights:
        return  # neighbours of pruned weights score 0 for a good reason
    mostly = [name for name, count in num_zero.items() if 2 * count > scoring.weights()[name].numel()]
    raise PruningError(
        f"more than half of the SynFlow scores are 0, most in {_modules(mostly, scoring.net)}: no signal passes "
        "there (saturated activations, weights of 0, or kernels larger than the pictures that reach them)"
    )


def _modules(names: list[str], net: nn.Module) -> str:
    modules = dict(net.named_modules())
    paths = [name.rpartition(".")[0] for name in names]
    shown = [f"{path or 'the network'} ({type(modules[path]).__name__})" for path in paths[:5]]
    return ", ".join(shown) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
