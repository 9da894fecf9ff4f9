from __future__ import annotations

from prunelab.data.seeds import derive_seed


def test_is_a_function_of_its_arguments() -> None:
    assert derive_seed(3, "order", 7) == derive_seed(3, "order", 7)


def test_seeds_purposes_and_epochs_do_not_collide() -> None:
    purposes = ("split", "order", "augment", "scoring")
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(20) for purpose in purposes for epoch in range(50)}
    assert len(seeds) == 20 * len(purposes) * 50


def test_takes_any_seed_that_torch_has() -> None:
    assert 0 <= derive_seed(2**64 - 1, "order", 10**6) < 2**64
