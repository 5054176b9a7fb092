"""A second device for torch, on which only what was moved there can be computed with.

It computes on the CPU, so all results must be the same; but like a GPU it refuses an operation on
tensors of two devices. A process that has installed it keeps it, so it runs in one of its own:
`python -m tests.support.second_device` trains and runs both towers on either device and prints, as
JSON, how far apart the results are and how many operations ran on the second one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

NAME = "elsewhere"
aten = torch.ops.aten
# All that may see tensors of two devices.
MOVES = {aten._to_copy.default, aten.copy_.default}


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the second device; its values are on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=f"{NAME}:0"
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(operation, *args, **(kwargs or {}))


operations = 0


def compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation with a tensor of the second device, or whose result shall be there.

    Raises RuntimeError for tensors of two devices; one number alone is taken from either.
    """
    global operations
    operations += 1
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if operation not in MOVES and any(t.ndim and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{operation} got tensors of two devices.")
    to = kwargs.get("device")
    if to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given, named = pytree.tree_map_only(Elsewhere, lambda t: t.values, (args, kwargs))
    result = operation(*given, **named)
    if to is not None and torch.device(to).type == "cpu":
        return result
    # What is changed in place stays the tensor that it is.
    known = {id(t.values): t for t in tensors if isinstance(t, Elsewhere)}
    return pytree.tree_map_only(
        torch.Tensor, lambda t: known[id(t)] if id(t) in known else Elsewhere(t), result
    )


def install() -> torch.device:
    """Makes the device known to torch: once per process, before anything went backward in it."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    install.library = torch.library.Library("_", "IMPL")
    install.library.fallback(compute, "PrivateUse1")
    return torch.device(f"{NAME}:0")


def results() -> dict[str, np.ndarray]:
    """What both towers make of the same posts and histories, trained with each of their losses."""
    from python_jobs.worker.towers import candidate, user
    from tests.support import planted
    from tests.support.patience import PATIENCE_S
    from tests.support.planted import planted_histories, planted_pairs, train, unit, untrained

    planted.RANDOM = np.random.default_rng(0)
    found = {}
    pairs = planted_pairs(100)
    pairs.rejected_user, pairs.rejected = unit(20, 128), np.arange(20)
    for loss in ("sampled_softmax", "squared_error"):
        config = candidate.CandidateConfig(loss=loss, epochs=2, max_seconds=PATIENCE_S)
        trained = candidate.train_candidate(pairs, untrained(), config).tensors
        found[f"candidate, {loss}"] = np.concatenate([t.ravel() for t in trained.values()])
    histories = planted_histories(40, unit(5, 128))
    for loss in ("sampled_softmax", "triplet"):
        wanted = user.UserConfig(loss=loss, steps=5, max_seconds=PATIENCE_S)
        trained = train(histories, unit(300, 128), wanted).tensors
        # Their weights are not compared: some have no gradient but rounding, which Adam magnifies.
        found[f"user, {loss}"] = user.encode_users(histories, trained, wanted)
    return found


def main() -> None:
    """Compares the devices."""
    from python_jobs.worker.towers import weights

    elsewhere = install()
    weights.device = lambda: torch.device("cpu")
    expected = results()
    weights.device = lambda: elsewhere
    # What wraps a tensor can not be an inference tensor.
    torch.inference_mode = torch.no_grad
    got = results()
    counted = operations
    report: dict[str, Any] = {
        name: float(np.abs(got[name] - expected[name]).max()) for name in expected
    }
    report["operations"], report["device"] = counted, str(elsewhere)
    try:
        torch.ones(2, device=elsewhere) + torch.ones(2)
    except RuntimeError as error:
        report["refused"] = str(error)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
