"""Many rounds of SynFlow on one network, with the masks that scoring each round by itself finds on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunelab.pruning.blocks import Block
from prunelab.pruning.flow import Flow, LastScores
from prunelab.pruning.masks import Masks
from prunelab.pruning.survivors import FixedSurvivors, SurvivorLists

Pass = tuple[Tensor, Sequence[Tensor]]  # R and its gradients

LOOK_AGAIN = 0.75  # share of the kept weights that is left since smaller blocks were looked for last
WORTH = 0.8  # share of the work that is left in smaller blocks
MEMORY = 40  # multiplications that take as long as reading a weight and writing its gradient, in VGG-16 on 2 CPU cores


class FlowRounds:
    """The state of SynFlow's rounds: scores, values and positions of the kept weights stay in lists beside the network.
    Measured, network included, with 1e8 weights and only 3 rounds, which drop most of them at once: 10 times the bytes
    of the float32 weights in float64, 7 times in float32.

    On the CPU, passes go through blocks of the weights (`blocks.py`) once those have become small. In float64 what is
    dropped stays what whole passes drop, with as many threads; in float32 rounding decides, as it does anyway. Where,
    in float64, the scores next to the threshold, above and below, are so close that the order of additions could have
    decided, the round is scored again by a whole pass, whose rounding then decides as it does without blocks: on
    another machine, or with other threads, it may decide otherwise. Before blocks are used at all, a whole pass has to
    give the same gradients, and nothing may be seen in the network for which there is no bound (`Uses.is_bounded`; nor
    may anything underflow, or the largest of equal numbers be taken from another place). Scores agree to about 1e-15
    of each then; without blocks they are the same bit for bit.

    masks: what the first round starts from. times_weight: whether the score is gradient times weight. of_log: whether
    scores are those of log R, those of R over R. check: is given the number of scores that are 0 of each layer, once.
    num_again: an attribute, how many rounds were scored again.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: Masks,
        inputs: Tensor,
        *,
        power: int = 1,
        activations: str = "identity",
        times_weight: bool = True,
        of_log: bool = False,
        check: Callable[[dict[str, int]], None],
    ) -> None:
        parameters = dict(net.named_parameters())
        self._names, self._inputs = list(masks), inputs
        self._of_log, self._times_weight = of_log, times_weight
        shapes = [mask.shape for mask in masks.values()]
        kept = torch.cat([mask.flatten() for mask in masks.values()])
        # one buffer for all weights, which the network sees in parts
        self._flat = torch.cat([parameters[name].detach().flatten().to(inputs.dtype) for name in masks])
        self._flat.abs_().pow_(power)
        if masks.num_kept < masks.num_weights:
            self._flat.masked_fill_(~kept, 0)
        weights = _leaves(self._flat, shapes)
        self._flow = Flow(net, dict(zip(masks, weights, strict=True)), inputs, power=power, activations=activations)
        self._blocks = [Block(weight.shape, weight) for weight in weights]
        self._is_whole = True
        self._survivors = self._lists(kept, masks.num_kept)
        self._num_looked, self.num_again = masks.num_kept, 0
        uses = self._flow.uses
        self._margin = uses.rounding * torch.finfo(inputs.dtype).eps
        self._is_certain = inputs.dtype == torch.float64  # the bound of float32 would be a few per cent of a score
        is_linear = activations == "identity" and inputs.device.type == "cpu"
        self._takes_blocks = is_linear and uses.is_bounded and all(uses.is_plain)
        self._check: Callable[[dict[str, int]], None] | None = check
        self._last = LastScores()

    def _lists(self, kept: Tensor, num_kept: int) -> SurvivorLists | FixedSurvivors:
        values = self._flat if self._times_weight else torch.ones_like(self._flat)
        sizes = [block.weight.numel() for block in self._blocks]
        kind = SurvivorLists if kept.device.type == "cpu" else FixedSurvivors
        return kind(values, kept, sizes, num_kept)

    def score(self) -> Mapping[str, Tensor]:
        """Scores of the weights that are kept, 0 for the others: made when they are read, until the next round."""
        self._last.close()  # what they are made of is overwritten from here on
        done = None
        if self._takes_blocks and self._survivors.num_kept < LOOK_AGAIN * self._num_looked:
            done = self._look_for_blocks()
        total, gradients = done or self._flow.gradients(self._inputs, None if self._is_whole else self._blocks)
        self._score(total, gradients)
        scores = self._last.give(self._names, self._scores_of)
        if self._check is not None:
            self._check({name: values.numel() - int(values.count_nonzero()) for name, values in scores.items()})
            self._check = None
        return scores

    def _score(self, total: Tensor, gradients: Sequence[Tensor]) -> None:
        self._survivors.score(gradients, (total.item() if self._of_log else 1.0) or 1.0)

    @torch.no_grad()
    def _look_for_blocks(self) -> Pass | None:
        """Returns this round's pass, if one was made."""
        self._num_looked = self._survivors.num_kept
        kept, grouped = self._kept(), self._flow.uses.is_grouped
        narrow = [
            block if is_grouped else block.around(part)
            for block, part, is_grouped in zip(self._blocks, kept, grouped, strict=True)
        ]
        if self._work(narrow) > WORTH * self._work(self._blocks):
            return None
        self._update_whole()
        flat = torch.cat([block.weight.detach().flatten() for block in narrow])
        weights = _leaves(flat, [block.weight.shape for block in narrow])
        blocks = [Block(old.shape, weight, old.rows, old.columns) for old, weight in zip(narrow, weights, strict=True)]
        done = None
        if self._is_whole:
            done, whole = (self._flow.gradients(self._inputs, given) for given in (blocks, None))
            if not self._agree(done, whole, blocks):
                self._takes_blocks = False
                return whole
            del whole
        del narrow
        kept = [block.take(part).flatten() for block, part in zip(blocks, self._everywhere(kept), strict=True)]
        self._blocks, self._flat, self._is_whole = blocks, flat, False
        self._survivors = self._lists(torch.cat(kept), self._num_looked)
        return done

    def _work(self, blocks: Sequence[Block]) -> int:
        """Of a pass, in multiplications."""
        pairs = zip(blocks, self._flow.uses.positions, strict=True)
        return sum(block.weight.numel() * (positions + MEMORY) for block, positions in pairs)

    def _agree(self, part: Pass, whole: Pass, blocks: Sequence[Block]) -> bool:
        """Whether a pass through blocks gave the gradients of a whole one."""
        pairs = zip(part[1], (block.take(one) for block, one in zip(blocks, whole[1], strict=True)), strict=True)
        return all(bool(((one - other).abs() <= self._margin * other).all()) for one, other in pairs)

    def _update_whole(self) -> None:
        """What was dropped since blocks were taken is 0 in the whole weights, too."""
        if not self._is_whole:
            for block, weight in zip(self._blocks, self._flow.weights, strict=True):
                block.put(block.weight.detach(), weight.detach())

    def _kept(self) -> list[Tensor]:
        parts = zip(self._survivors.kept_by_layer(), self._blocks, strict=True)
        return [part.view(block.weight.shape) for part, block in parts]

    def _everywhere(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Parts of the blocks' shapes in whole layers, 0 outside."""
        if self._is_whole:
            return list(parts)
        return [block.put(part, part.new_zeros(block.shape)) for part, block in zip(parts, self._blocks, strict=True)]

    def _scores_of(self, name: str) -> Tensor:
        index = self._names.index(name)
        block, scores = self._blocks[index], self._survivors.scores(index)
        part = scores.view(block.weight.shape)
        return part if self._is_whole else block.put(part, part.new_zeros(block.shape))

    @torch.no_grad()
    def keep(self, num_kept: int) -> None:
        """Keep so many of the highest of the last scores."""
        margin = self._margin if self._is_certain and not self._is_whole else 0.0
        if self._survivors.drop(num_kept, self._flat, margin):
            return
        self.num_again += 1
        self._update_whole()
        total, gradients = self._flow.gradients(self._inputs)
        self._score(total, [block.take(part) for block, part in zip(self._blocks, gradients, strict=True)])
        self._survivors.drop(num_kept, self._flat)

    def masks(self) -> Masks:
        """What is kept now."""
        return Masks(dict(zip(self._names, self._everywhere(self._kept()), strict=True)))

    def end(self) -> None:
        """After the last round. Raises: PruningError if scores of any were inf or NaN."""
        self._survivors.check()


def _leaves(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Parts of `flat` in its memory, which gradients are asked for."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.detach().view(shape).requires_grad_() for part, shape in zip(parts, shapes, strict=True)]
