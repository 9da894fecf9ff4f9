"""Criteria: one file per method; a criterion only scores. Ready instances carry the names that configs use."""

from prunelab.pruning.criteria.erk import Erk
from prunelab.pruning.criteria.force import Force
from prunelab.pruning.criteria.grasp import Grasp
from prunelab.pruning.criteria.iterative_snip import IterativeSnip
from prunelab.pruning.criteria.lamp import Lamp
from prunelab.pruning.criteria.magnitude import Magnitude
from prunelab.pruning.criteria.mask_criterion import MaskCriterion
from prunelab.pruning.criteria.random import Random
from prunelab.pruning.criteria.snip import Snip
from prunelab.pruning.criteria.synflow import SynFlow

# the modules' names give way to the instances of the same name: `from prunelab.pruning.criteria import snip`
random = Random()
erk = Erk()
magnitude = Magnitude()
lamp = Lamp()
mask_criterion = MaskCriterion()
snip = Snip()
iterative_snip = IterativeSnip()
force = Force()
grasp = Grasp()
synflow = SynFlow()

__all__ = [
    "Erk",
    "Force",
    "Grasp",
    "IterativeSnip",
    "Lamp",
    "Magnitude",
    "MaskCriterion",
    "Random",
    "Snip",
    "SynFlow",
    "erk",
    "force",
    "grasp",
    "iterative_snip",
    "lamp",
    "magnitude",
    "mask_criterion",
    "random",
    "snip",
    "synflow",
]
