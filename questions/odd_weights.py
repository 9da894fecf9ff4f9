"""What does SynFlow do with all-ones weights, and with weights that cancel?

    python questions/odd_weights.py [--seeds 3] [--output FOLDER]

Cancelling: hidden units in pairs that see the same and whose outputs have opposite weights.
Such a pair computes 0.
"""

from __future__ import annotations

from collections.abc import Callable

import asking
import torch
from torch import nn

from prunelab.pruning import Masks, score

DENSITY = 0.05
PAIRS, FACTOR = 15, 10.0  # of 150 pairs; outgoing weights times FACTOR


def all_ones(net: nn.Module) -> nn.Module:
    """Every weight 1 / (inputs of its unit), in place: SynFlow's masks are those of ones, and it can be trained."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 1 / module.in_features)
    return net


def cancelling(net: nn.Module, pairs: int = PAIRS, factor: float = FACTOR) -> nn.Module:
    """The first 2 * pairs hidden units of LeNet-300-100 in pairs that cancel, in place."""
    first, second = (dict(net.named_parameters())[name].data for name in ("fc1.weight", "fc2.weight"))
    first[1 : 2 * pairs : 2] = first[0 : 2 * pairs : 2]
    second[:, 0 : 2 * pairs : 2] *= factor
    second[:, 1 : 2 * pairs : 2] = -second[:, 0 : 2 * pairs : 2]
    return net


def strengthened(net: nn.Module, pairs: int = PAIRS, factor: float = FACTOR) -> nn.Module:
    """The control: as many units, outgoing weights as large, without pairs."""
    dict(net.named_parameters())["fc2.weight"].data[:, : 2 * pairs] *= factor
    return net


def toy() -> nn.Module:
    """One input, three hidden units: 1 * 9999, 1 * -9999, which cancel, and 1 * 1, which is the whole function."""
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    net[0].weight.data = torch.ones(3, 1)
    net[2].weight.data = torch.tensor([[9999.0, -9999.0, 1.0]])
    return net


def toy_scores() -> dict[str, list[float]]:
    """Criterion -> scores of the six weights: first layer, then second; the target is 0, the loss a square."""
    batches = [(torch.ones(1, 1), torch.zeros(1, 1))]
    found = {}
    for name in ("synflow", "snip", "magnitude"):
        criterion = asking.CRITERIA[name]
        scores = score(toy(), criterion, example_input=torch.ones(1, 1), batches=batches, loss=nn.functional.mse_loss)
        found[name] = [value for layer in scores.values() for value in layer.flatten().tolist()]
    return found


@torch.no_grad()
def deviation_of_outputs(net: nn.Module, masks: Masks) -> float:
    """Of the pruned network, in place, on the training pictures."""
    masks.apply_to(net)
    return net(asking.digits().train).std().item()


def spent(masks: Masks, pairs: int = PAIRS) -> float:
    """Share of the kept weights that lead into or out of the cancelling units, in %."""
    inside = masks["fc1.weight"][: 2 * pairs].sum() + masks["fc2.weight"][:, : 2 * pairs].sum()
    return 100 * inside.item() / masks.num_kept


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Kaiming": nn.Module.train,
    "all ones": all_ones,
    "15 pairs cancel": cancelling,
    "30 units x 10": strengthened,
}


def ask(seeds: int) -> asking.Answer:
    rows = [[name, *(f"{value:g}" for value in values)] for name, values in toy_scores().items()]
    small = asking.table(["toy", "w1 = 1", "w1 = 1", "w1 = 1", "w2 = 9999", "w2 = -9999", "w2 = 1"], rows)
    rows = []
    for title, change in CHANGES.items():
        dense = [asking.train(change(asking.build(asking.lenet, seed)), None, seed) for seed in range(seeds)]
        rows.append([title, "dense", "-", "-", "400", asking.spread(dense)])
        for name in asking.CRITERIA:
            shares, outputs, units, accuracies = [], [], [], []
            for seed in range(seeds):
                net = change(asking.build(asking.lenet, seed))
                masks = asking.pruned(net, name, DENSITY, seed, scope="layerwise" if name == "random" else "global")
                shares.append(spent(masks))
                units.append(sum(int(masks[layer].any(1).sum()) for layer in ("fc1.weight", "fc2.weight")))
                outputs.append(deviation_of_outputs(net, masks))
                accuracies.append(asking.train(net, masks, seed))
            shown = [f"{asking.spread(shares)} %", f"{min(outputs):.0e} - {max(outputs):.0e}", asking.spread(units, 0)]
            shown.append(asking.spread(accuracies))
            rows.append([title, f"`{name}`", *shown])
    head = ["weights", "criterion", "kept in those units", "outputs before training", "live hidden units", "accuracy"]
    return asking.Answer(f"{small}\n\n{asking.table(head, rows)}")


if __name__ == "__main__":
    asking.main("odd_weights", ask, __doc__)
