"""The losses that a tower can be trained with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_error(similarity: Tensor, label: Tensor) -> Tensor:
    """Mean of (cosine - target)^2 with target +1 for a positive, -1 for a negative.

    similarity, label (bool): any equal shape. From the specification, "Candidate Tower MLP".
    """
    return ((similarity - (2.0 * label.float() - 1.0)) ** 2).mean()


def triplet(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin - positive + negative) over cosines of equal shape.

    From the specification, "User Tower Transformer".
    """
    return F.relu(margin - positive + negative).mean()


def sampled_softmax(
    positive: Tensor, negatives: Tensor, log_q: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of the positive among sampled negatives, corrected for how they were sampled.

    positive [b] and negatives [b, n] are cosines; log_q [b, n] is the log of the probability with
    which each negative was drawn, or of how often it is expected among the n, which is subtracted
    from its logit, so that frequent posts are not punished for being frequent (Yi et al., RecSys
    2019); mask [b, n] is false for padding and for negatives that are the positive itself, whose
    log_q is then of no account.
    """
    logits = (negatives / temperature - log_q).masked_fill(~mask, float("-inf"))
    all_logits = torch.cat([(positive / temperature)[:, None], logits], dim=1)
    return -torch.log_softmax(all_logits, dim=1)[:, 0].mean()
