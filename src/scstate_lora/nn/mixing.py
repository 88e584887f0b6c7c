"""Mixing of a residual by doubly stochastic matrices: across parallel streams, or across the features of one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.sinkhorn import SinkhornKnopp

_RES_LOGIT = 4.0
"""Initial logits of the streams' H_res are the identity times this, which gives 0.948 on the diagonal of 4 x 4. Smaller
values drift from the identity over many layers; larger ones barely train."""
_GATE = 1e-8
"""Initial gate of the features. A mix scaled by this vanishes in float32, so the start is exact; unlike 0 it still has
a gradient."""


class Mixing(NamedTuple):
    """Connections of one layer: shared by all tokens or, if they depend on the input, with leading axes for the tokens.

    ``pre`` weighs the input of the branch, ``post`` its output, and ``res`` mixes the residual.
    """

    pre: Tensor
    post: Tensor
    res: Tensor


class StreamMixing(nn.Module):
    """Connections of ``n_streams`` parallel residual streams, as in the paper: ``n^2 + 2 n`` parameters per layer.

    Initially a layer computes the same as on one stream. It reads all streams with equal weights; it writes to them
    with weights of 0.7 to 1.3, one on average; and the mean over the streams equals the single stream, since columns of
    H_res sum to one. Equal streams would stay equal, and H_res would get no gradient, hence the unequal weights. For
    the same reason, the first layer does not copy its input to the streams but scales it by 0.7 to 1.3, and the last
    layer reads them with learned weights, equal at first: on equal streams, or under a plain mean, H_res has no effect.

    Parameters
    ----------
    hidden, n_streams, sinkhorn_iters, dynamic, expands, contracts
        As in :class:`~scstate_lora.nn.hyper_connections.MHCTransformerLayer`.

    Raises
    ------
    ValueError
        If `n_streams` is less than two, or `sinkhorn_iters` less than one.
    """

    def __init__(
        self, hidden: int, *, n_streams: int, sinkhorn_iters: int, dynamic: bool, expands: bool, contracts: bool
    ) -> None:
        super().__init__()
        if n_streams < 2:
            msg = f"n_streams is {n_streams}, but mixing needs at least 2; the paper has 4."
            raise ValueError(msg)
        n = n_streams
        self.n_streams, self.expands = n, expands
        self.sinkhorn = SinkhornKnopp(sinkhorn_iters)
        self.pre_logits = nn.Parameter(torch.full((n,), -math.log(n - 1)))  # the sigmoid is 1 / n
        self.post_logits = nn.Parameter(torch.logit(_unequal(n) / 2))
        self.res_logits = nn.Parameter(_RES_LOGIT * torch.eye(n))
        self.contract_logits = nn.Parameter(torch.zeros(n)) if contracts else None
        self.input_part = _InputPart(hidden, (n, n, n * n)) if dynamic else None

    def forward(self, x: Tensor | None) -> Mixing:
        """Compute the connections for streams ``(..., n, hidden)``, in float32; None: those independent of the input.

        ``pre`` and ``post`` are ``(n,)`` or ``(..., n)``, ``res`` is ``(n, n)`` or ``(..., n, n)``.
        """
        if x is not None and (x.ndim < 2 or x.shape[-2] != self.n_streams):
            msg = (
                f"Found {tuple(x.shape)}, but this layer takes {self.n_streams} streams, (..., {self.n_streams}, "
                "hidden). The first wrapped layer of a run makes them from one stream, expands=True."
            )
            raise ValueError(msg)
        pre, post, res = self.pre_logits.float(), self.post_logits.float(), self.res_logits.float()
        if self.input_part is not None and x is not None:
            to_pre, to_post, to_res = self.input_part(x.float().mean(-2))  # (..., n), (..., n), (..., n n)
            pre, post, res = pre + to_pre, post + to_post, res + to_res.unflatten(-1, res.shape)  # (..., n, n)
        return Mixing(pre.sigmoid(), 2 * post.sigmoid(), self.sinkhorn(res))

    def expand(self, x: Tensor) -> Tensor:
        """Make streams ``(..., n, hidden)`` from one ``(..., hidden)``."""
        # Streams are contiguous in memory, so that mixing them is a single matrix product.
        weights = _unequal(self.n_streams, x.device).view(-1, *[1] * x.ndim)  # (n, 1, ..., 1)
        return (weights * x).to(x.dtype).movedim(0, -2)  # (n, ..., hidden) -> (..., n, hidden)

    def contract(self, x: Tensor) -> Tensor:
        """Make one stream from ``(..., n, hidden)`` if the layer is the last of its run."""
        if self.contract_logits is None:
            return x
        return _mix(self.contract_logits.float().softmax(0).unsqueeze(0), x).squeeze(-2)

    def read(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Combine the streams to the input of the branch, ``(..., hidden)``."""
        return _mix(mixing.pre.unsqueeze(-2), x).squeeze(-2)  # (..., 1, n) x (..., n, hidden) -> (..., hidden)

    def write(self, x: Tensor, branch: Tensor, mixing: Mixing) -> Tensor:
        """Mix the streams and add the branch ``(..., hidden)`` to each."""
        # The branch is mixed as one more stream: one product instead of two and their sum.
        return _mix(torch.cat([mixing.res, mixing.post.unsqueeze(-1)], -1), x, branch.unsqueeze(-2))

    def residual_matrix(self, mixing: Mixing) -> Tensor:
        """Give H_res, ``(n, n)``, averaged over the tokens if it depends on them."""
        return mixing.res.reshape(-1, self.n_streams, self.n_streams).mean(0)  # (..., n, n) -> (tokens, n, n) -> (n, n)


class FeatureMixing(nn.Module):
    """Connections of one residual stream whose features are mixed: ``hidden^2 + 2 hidden + 1`` parameters per layer.

    ``H_res = (1 - g) I + g S``, with S doubly stochastic by Sinkhorn, all its entries equal at first, and one gate
    ``g = tanh |a|``: an average of doubly stochastic matrices is doubly stochastic. Initially g is 1e-8, which changes
    nothing in float32, yet ``a`` has its full gradient, as an absolute value has slope one however close to zero. The
    gradient of the logits is proportional to g, so they start to move with the first step of the gate. H_pre and H_post
    are diagonal, non-negative, and one at first.

    Without a gate, no logits b I are both close to the identity and trainable: over four layers of width 128, b = 18 is
    needed for a largest difference of 2e-5 from the unwrapped network, and 20 steps of Adam at 1e-3 then move H_res by
    3e-8 of its norm. With the gate, they move it by 2e-2, from a difference of 1e-6, which is rounding.

    Parameters
    ----------
    hidden, sinkhorn_iters, dynamic
        As in :class:`~scstate_lora.nn.hyper_connections.MHCTransformerLayer`.

    Raises
    ------
    ValueError
        If `sinkhorn_iters` is less than one.
    """

    expands = False

    def __init__(self, hidden: int, *, sinkhorn_iters: int, dynamic: bool) -> None:
        super().__init__()
        self.sinkhorn = SinkhornKnopp(sinkhorn_iters)
        self.pre_logits = nn.Parameter(torch.zeros(hidden))
        self.post_logits = nn.Parameter(torch.zeros(hidden))
        self.res_logits = nn.Parameter(torch.zeros(hidden, hidden))
        self.res_gate = nn.Parameter(torch.tensor([_GATE]))
        # A matrix per token would be too large, so the input shifts the gate, and all entries of pre and post alike.
        self.input_part = _InputPart(hidden, (1, 1, 1)) if dynamic else None

    def forward(self, x: Tensor | None) -> Mixing:
        """Compute the connections for a stream ``(..., hidden)``, in float32; None: those independent of the input.

        ``pre`` and ``post`` are ``(hidden,)`` or ``(..., hidden)``; ``res`` is the gate, ``(1,)`` or ``(..., 1)``.
        """
        pre, post, gate = self.pre_logits.float(), self.post_logits.float(), self.res_gate.float()
        if self.input_part is not None and x is not None:
            to_pre, to_post, to_gate = self.input_part(x.float())
            pre, post, gate = pre + to_pre, post + to_post, gate + to_gate
        return Mixing(2 * pre.sigmoid(), 2 * post.sigmoid(), gate.abs().tanh())

    def expand(self, x: Tensor) -> Tensor:
        """Leave the one stream as it is."""
        return x

    def contract(self, x: Tensor) -> Tensor:
        """Leave the one stream as it is."""
        return x

    def read(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Weigh the features that the branch reads, ``(..., hidden)``."""
        return mixing.pre * x

    def write(self, x: Tensor, branch: Tensor, mixing: Mixing) -> Tensor:
        """Mix the features and add the branch, ``(..., hidden)``."""
        mixed = F.linear(x.float(), self.sinkhorn(self.res_logits))
        # Not one product with H_res: the unmixed part must stay exact.
        return x + mixing.res * (mixed - x) + mixing.post * branch

    def residual_matrix(self, mixing: Mixing) -> Tensor:
        """Give H_res, ``(hidden, hidden)``, averaged over the tokens if it depends on them."""
        eye = torch.eye(len(self.res_logits), device=self.res_logits.device)
        return eye + mixing.res.mean() * (self.sinkhorn(self.res_logits) - eye)


class _InputPart(nn.Module):
    """Contribution of the input to the logits: a linear map of the normalised tokens, times gates, zero at first."""

    def __init__(self, hidden: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.linear = nn.Linear(hidden, sum(sizes), bias=False)
        nn.init.normal_(self.linear.weight, std=hidden**-0.5)
        self.gates = nn.Parameter(torch.zeros(len(sizes)))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Map tokens ``(..., hidden)`` to one tensor ``(..., size)`` for each of the sizes."""
        logits = F.linear(F.rms_norm(tokens, tokens.shape[-1:]), self.linear.weight.float())
        parts = logits.split(self.sizes, dim=-1)
        return [gate * part for gate, part in zip(self.gates.float(), parts, strict=True)]


def select(mixing: Mixing, keep: Tensor, *, by_token: bool) -> Mixing:
    """Choose the positions ``keep (K,)`` of the second axis if connections differ by token."""
    return Mixing(*(part[:, keep] for part in mixing)) if by_token else mixing


def _unequal(n: int, device: torch.device | None = None) -> Tensor:
    """Weights of the streams, from 0.7 to 1.3 and 1 on average, ``(n,)``."""
    return torch.linspace(0.7, 1.3, n, device=device)


def _mix(matrix: Tensor, *streams: Tensor) -> Tensor:
    """Multiply ``(m, n)`` or ``(..., m, n)`` with streams, together ``(..., n, d)``, to ``(..., m, d)``."""
    if matrix.ndim > 2:
        return matrix @ _joined([x.float() for x in streams], -2)
    first = _joined([x.float().movedim(-2, 0) for x in streams], 0)  # (n, ..., d)
    mixed = matrix @ first.flatten(1)  # (m, n) x (n, ... d): one product over all tokens
    return mixed.view(-1, *first.shape[1:]).movedim(0, -2)  # (m, ..., d) -> (..., m, d)


def _joined(streams: list[Tensor], axis: int) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(streams, axis)
