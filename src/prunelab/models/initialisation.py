"""The one initialisation that all builders of this package apply."""

from __future__ import annotations

from torch import nn


def initialise(net: nn.Module) -> nn.Module:
    """Draw the weights of `net` anew, in place, and return it.

    Convolution and linear weights ~ N(0, 2 / fan_in), where fan_in = inputs per output unit (Kaiming-normal);
    their biases 0; batch norm scale 1, shift 0, running mean 0, running variance 1.
    Draws from torch's global generator in the order of `net.modules()`; other layers keep what they have.

    Reference: He, Zhang, Ren, Sun 2015, "Delving Deep into Rectifiers", arXiv 1502.01852, section 2.2.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return net
