"""Mixing of a residual by doubly stochastic matrices: of its parallel streams, or of the features of one stream."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.sinkhorn import SinkhornKnopp

# Logits of the streams' H_res are this many times the identity at first: 0.948 on the diagonal of 4 x 4. Less is far
# from the identity over many layers, more hardly moves.
_RES_LOGIT = 4.0
# The gate of the features at first. Times it, a mixing is lost in float32's rounding; zero itself has no slope.
_GATE = 1e-8


class Mixing(NamedTuple):
    """Connections of one layer: the same for all tokens or, where they depend on the input, with axes for those first.

    ``pre`` and ``post`` weigh what the branch reads and where it writes, ``res`` mixes the residual.
    """

    pre: Tensor
    post: Tensor
    res: Tensor


class StreamMixing(nn.Module):
    """Connections of ``n_streams`` parallel residual streams, as in the paper: ``n^2 + 2 n`` numbers a layer.

    At first a layer computes what it did on one stream. All streams weigh the same in what it reads; it writes to them
    0.7 to 1.3 times, once on average; and the mean over the streams is the stream there was, since columns of H_res sum
    to one. Streams that were equal would stay equal, and H_res have no gradient, hence the unequal writing. For the
    same reason the first layer does not copy its input to the streams but gives them 0.7 to 1.3 times it, and the last
    reads them by learned weights, equal at first: on equal streams, or under a plain mean, no H_res matters.

    Parameters
    ----------
    hidden, n_streams, sinkhorn_iters, dynamic, expands, contracts
        As in :class:`~scstate_lora.nn.hyper_connections.MHCTransformerLayer`.

    Raises
    ------
    ValueError
        ``n_streams`` is less than two, or ``sinkhorn_iters`` than one.
    """

    def __init__(
        self, hidden: int, *, n_streams: int, sinkhorn_iters: int, dynamic: bool, expands: bool, contracts: bool
    ) -> None:
        super().__init__()
        if n_streams < 2:
            msg = f"n_streams is {n_streams}, but there is something to mix from 2 on; the paper has 4."
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
        """Compute the connections for streams ``(..., n, hidden)``, in float32; None: without the input's part.

        ``pre`` and ``post`` are ``(n,)`` or ``(..., n)``, ``res`` is ``(n, n)`` or ``(..., n, n)``.
        """
        if x is not None and (x.ndim < 2 or x.shape[-2] != self.n_streams):
            msg = (
                f"Found {tuple(x.shape)}, but this layer takes {self.n_streams} streams, (..., {self.n_streams}, "
                "hidden). The first wrapped layer of a row makes them of one stream, expands=True."
            )
            raise ValueError(msg)
        pre, post, res = self.pre_logits.float(), self.post_logits.float(), self.res_logits.float()
        if self.input_part is not None and x is not None:
            to_pre, to_post, to_res = self.input_part(x.float().mean(-2))
            pre, post, res = pre + to_pre, post + to_post, res + to_res.unflatten(-1, res.shape)
        return Mixing(pre.sigmoid(), 2 * post.sigmoid(), self.sinkhorn(res))

    def expand(self, x: Tensor) -> Tensor:
        """Make streams ``(..., n, hidden)`` of one ``(..., hidden)``."""
        # Streams lie one after the other in memory: mixing them is then one matrix product.
        weights = _unequal(self.n_streams, x.device).view(-1, *[1] * x.ndim)
        return (weights * x).to(x.dtype).movedim(0, -2)

    def contract(self, x: Tensor) -> Tensor:
        """Make one stream of ``(..., n, hidden)`` where the layer is the last of its run."""
        if self.contract_logits is None:
            return x
        return _mix(self.contract_logits.float().softmax(0).unsqueeze(0), x).squeeze(-2)

    def read(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Weigh the streams to what the branch reads, ``(..., hidden)``."""
        return _mix(mixing.pre.unsqueeze(-2), x).squeeze(-2)

    def write(self, x: Tensor, branch: Tensor, mixing: Mixing) -> Tensor:
        """Mix the streams and add the branch ``(..., hidden)`` to each."""
        # The branch as one more stream to mix: one product instead of two and their sum.
        return _mix(torch.cat([mixing.res, mixing.post.unsqueeze(-1)], -1), x, branch.unsqueeze(-2))

    def residual_matrix(self, mixing: Mixing) -> Tensor:
        """Give H_res, the mean over the tokens where it depends on them, ``(n, n)``."""
        return mixing.res.reshape(-1, self.n_streams, self.n_streams).mean(0)


class FeatureMixing(nn.Module):
    """Connections of one residual stream whose features are mixed: ``hidden^2 + 2 hidden + 1`` numbers a layer.

    ``H_res = (1 - g) I + g S`` with S doubly stochastic by Sinkhorn, all entries equal at first, and one gate
    ``g = tanh |a|``: a mean of doubly stochastic matrices is one. At first g is 1e-8, which changes nothing in float32,
    and yet ``a`` has its full gradient, as an absolute value has slope one however near to zero. The logits' gradient
    is in proportion to g, so they start to move with the gate's first step. H_pre and H_post are diagonal, not
    negative, and one at first.

    Logits of b I without a gate are not both near the identity and able to move: over four layers 128 wide it takes
    b = 18 for a largest difference of 2e-5 from the unwrapped network, and 20 steps of Adam at 1e-3 then move H_res by
    3e-8 of its norm. With the gate they move it by 2e-2, from a difference of 1e-6, which is rounding.

    Parameters
    ----------
    hidden, sinkhorn_iters, dynamic
        As in :class:`~scstate_lora.nn.hyper_connections.MHCTransformerLayer`.

    Raises
    ------
    ValueError
        ``sinkhorn_iters`` is less than one.
    """

    expands = False

    def __init__(self, hidden: int, *, sinkhorn_iters: int, dynamic: bool) -> None:
        super().__init__()
        self.sinkhorn = SinkhornKnopp(sinkhorn_iters)
        self.pre_logits = nn.Parameter(torch.zeros(hidden))
        self.post_logits = nn.Parameter(torch.zeros(hidden))
        self.res_logits = nn.Parameter(torch.zeros(hidden, hidden))
        self.res_gate = nn.Parameter(torch.tensor([_GATE]))
        # A matrix for every token would be too much, so the input moves the gate, and all of pre and post alike.
        self.input_part = _InputPart(hidden, (1, 1, 1)) if dynamic else None

    def forward(self, x: Tensor | None) -> Mixing:
        """Compute the connections for a stream ``(..., hidden)``, in float32; None: without the input's part.

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
        """Weigh the features to what the branch reads, ``(..., hidden)``."""
        return mixing.pre * x

    def write(self, x: Tensor, branch: Tensor, mixing: Mixing) -> Tensor:
        """Mix the features and add the branch, ``(..., hidden)``."""
        mixed = F.linear(x.float(), self.sinkhorn(self.res_logits))
        # Not one product with H_res: what stays as it is, is to be exact.
        return x + mixing.res * (mixed - x) + mixing.post * branch

    def residual_matrix(self, mixing: Mixing) -> Tensor:
        """Give H_res, the mean over the tokens where it depends on them, ``(hidden, hidden)``."""
        eye = torch.eye(len(self.res_logits), device=self.res_logits.device)
        return eye + mixing.res.mean() * (self.sinkhorn(self.res_logits) - eye)


class _InputPart(nn.Module):
    """What the input adds to logits: a linear map of the normalised tokens, times gates that are zero at first."""

    def __init__(self, hidden: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.linear = nn.Linear(hidden, sum(sizes), bias=False)
        nn.init.normal_(self.linear.weight, std=hidden**-0.5)
        self.gates = nn.Parameter(torch.zeros(len(sizes)))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Tokens ``(..., hidden)`` to one ``(..., size)`` for each of the sizes."""
        logits = F.linear(F.rms_norm(tokens, tokens.shape[-1:]), self.linear.weight.float())
        parts = logits.split(self.sizes, dim=-1)
        return [gate * part for gate, part in zip(self.gates.float(), parts, strict=True)]


def select(mixing: Mixing, keep: Tensor, *, by_token: bool) -> Mixing:
    """Choose the positions ``keep (K,)`` of the second axis, where connections differ by token."""
    return Mixing(*(part[:, keep] for part in mixing)) if by_token else mixing


def _unequal(n: int, device: torch.device | None = None) -> Tensor:
    """Weights of the streams, 0.7 to 1.3 and 1 on average."""
    return torch.linspace(0.7, 1.3, n, device=device)


def _mix(matrix: Tensor, *streams: Tensor) -> Tensor:
    """Product of ``(m, n)`` or ``(..., m, n)`` with streams, ``(..., n, d)`` all together: ``(..., m, d)``."""
    if matrix.ndim > 2:
        return matrix @ _joined([x.float() for x in streams], -2)
    first = _joined([x.float().movedim(-2, 0) for x in streams], 0)  # (n, ..., d)
    mixed = matrix @ first.flatten(1)  # one product over all tokens
    return mixed.view(-1, *first.shape[1:]).movedim(0, -2)


def _joined(streams: list[Tensor], axis: int) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(streams, axis)
