"""The State Transition (ST) network: a set of control cells and a perturbation to the set of perturbed cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from scstate_lora._compat_torch import clamp_min
from scstate_lora.nn.backbones import BackboneConfig, make_backbone
from scstate_lora.nn.context_shift import ContextShift, FurtherShift, covariate_coordinates, n_coordinates
from scstate_lora.nn.covariates import MultiCovariateEncoder
from scstate_lora.nn.gene_decoder import GeneDecoder
from scstate_lora.nn.lora import train_adapters_only
from scstate_lora.nn.set_tokens import BatchToken, ConfidenceToken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec

_TINY = 1e-4
"""Added to a gene's mean expression, so that an unexpressed gene does not divide by zero."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
}


@dataclass(frozen=True)
class STConfig:
    """Sizes and form of an ST network.

    Parameters
    ----------
    n_inputs
        Features of a cell: genes, or columns of an embedding.
    pert_dim
        Width of a perturbation vector.
    hidden, n_layers, n_heads, head_dim, intermediate, backbone
        Sizes and architecture of the backbone, see :class:`~scstate_lora.nn.backbones.BackboneConfig`.
    dropout
        Dropout of encoders and head in training. The backbone has none, as in published models.
    n_encoder_layers, n_decoder_layers, activation
        Number of linear layers in the encoders and in the head, and the activation between them.
    basal_mlp
        Whether the encoder of cells has as many layers as that of perturbations; otherwise it has one.
    residual
        ``"output"``: the head gives the change of each cell, zero at first. ``"latent"``: the head gives the cell, from
        the sum of its representations before and after the backbone. ``"none"``: from the latter alone.
    non_negative
        Whether predicted cells are expression, which is never below zero.
    n_decoded
        Number of genes decoded from a predicted embedding; None for no decoder.
    decoder_dims, decoder_dropout, decoder_residual
        Form of that decoder, see :class:`~scstate_lora.nn.gene_decoder.GeneDecoder`.
    down_up
        Whether the head's output is added to the control cell and the sum passed through two more layers with a
        bottleneck of an eighth of the width, as in some of Arc's models; requires ``residual="latent"``.
    n_batches
        Rows of a table of batch vectors, one of which is added to every cell (Arc's models); None for no table.
    batch_classes
        Number of batches that a token before the cells learns to recognise; None for no such token.
    confidence_token
        Whether a token after the cells predicts the loss.
    n_references, n_directions
        Sizes of the :class:`~scstate_lora.nn.context_shift.ContextShift`, with ``residual="output"``.
    n_further
        Number of genes that are moved by the shift alone, without passing the network, with ``residual="output"``.
    """

    n_inputs: int
    pert_dim: int
    hidden: int
    n_layers: int
    n_heads: int
    dropout: float = 0.1
    backbone: Literal["gpt2", "llama", "bert"] = "gpt2"
    head_dim: int | None = None
    intermediate: int | None = None
    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    activation: str = "gelu"
    basal_mlp: bool = True
    residual: Literal["output", "latent", "none"] = "output"
    non_negative: bool = True
    n_decoded: int | None = None
    decoder_dims: tuple[int, ...] = (512,)
    decoder_dropout: float = 0.1
    decoder_residual: bool = False
    down_up: bool = False
    n_batches: int | None = None
    batch_classes: int | None = None
    confidence_token: bool = False
    n_references: int = 0
    n_directions: int = 0
    n_further: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, sizes: Mapping[str, Any]) -> STConfig:
        """Rebuild from :meth:`to_dict`, also after JSON, which turns tuples into lists."""
        return cls(**{**sizes, "decoder_dims": tuple(sizes.get("decoder_dims", (512,)))})


class Prediction(NamedTuple):
    """Output of the network for sets of cells."""

    cells: Tensor
    """Predicted perturbed cells, in the order of the control cells, ``(n_sets, n_cells, n_inputs)``."""
    change: Tensor
    """Change of each cell beyond the shift of its perturbation, ``(n_sets, n_cells, n_inputs)``."""
    confidence: Tensor | None
    """Predicted loss of each set, ``(n_sets,)``; None without a confidence token."""
    batch_scores: Tensor | None
    """Logits of the batch of each set, ``(n_sets, batch_classes)``; None without a batch token."""


class StateTransition(nn.Module):
    """Set-to-set model of a perturbation (after Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135).

    With ``residual="output"``: prediction = control + shift of the perturbation in the context + change of the cell.
    The shift is linear in the perturbation vector, plus a correction from similar contexts
    (:class:`~scstate_lora.nn.context_shift.ContextShift`). The change comes from a transformer over the set, which
    reads each cell, the perturbation and the covariates. Shift and head start at zero, so an untrained model predicts
    exactly "no change", and differences between cells are preserved. Training first solves for the shift, and the
    transformer learns the remainder. :func:`move_expression` applies both to expression.

    Parameters
    ----------
    config
        Sizes and form.
    specs
        Covariates other than the perturbation, as in :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.
    """

    shift: Tensor | None

    def __init__(self, config: STConfig, specs: Mapping[str, CovariateSpec]) -> None:
        super().__init__()
        c = self.config = config
        self.specs = dict(specs)
        mlp = partial(_mlp, hidden=c.hidden, dropout=c.dropout, activation=c.activation)
        self.pert_encoder = mlp(c.pert_dim, c.hidden, c.n_encoder_layers)
        self.basal_encoder: nn.Module = (
            mlp(c.n_inputs, c.hidden, c.n_encoder_layers) if c.basal_mlp else nn.Linear(c.n_inputs, c.hidden)
        )
        self.covariate_encoder = MultiCovariateEncoder(specs, c.hidden, hidden_dims=(c.hidden,)) if specs else None
        self.batch_encoder = None if c.n_batches is None else nn.Embedding(c.n_batches, c.hidden)
        self.transformer_backbone = make_backbone(
            BackboneConfig(c.backbone, c.hidden, c.n_layers, c.n_heads, c.intermediate, c.head_dim)
        )
        self.project_out = mlp(c.hidden, c.n_inputs, c.n_decoder_layers)
        # Solved for in closed form: trained by gradient, it would drift towards the training contexts.
        self.register_buffer("shift", torch.zeros(c.pert_dim, c.n_inputs) if c.residual == "output" else None)
        if c.residual == "output":
            nn.init.zeros_(self.project_out[-1].weight)  # type: ignore[arg-type]  # the last layer is linear
            nn.init.zeros_(self.project_out[-1].bias)  # type: ignore[arg-type]  # as above
            self.context_shift = self._make_context_shift()
        self.further_shift = self._make_further_shift() if c.n_further else None
        # Arc's name: a bottleneck, "down" to an eighth of the width, "then up" again, after the head ("project_out").
        narrow = c.n_inputs // 8
        self.final_down_then_up = (
            nn.Sequential(nn.Linear(c.n_inputs, narrow), nn.GELU(), nn.Linear(narrow, c.n_inputs))
            if c.down_up
            else None
        )
        self.gene_decoder = (
            None
            if c.n_decoded is None
            else GeneDecoder(
                c.n_inputs, c.n_decoded, c.decoder_dims, dropout=c.decoder_dropout, residual=c.decoder_residual
            )
        )
        self.batch_token = None if c.batch_classes is None else BatchToken(c.hidden)
        self.batch_classifier = None if c.batch_classes is None else mlp(c.hidden, c.batch_classes, 1)
        self.confidence_token = ConfidenceToken(c.hidden, c.dropout) if c.confidence_token else None

    def _make_context_shift(self) -> ContextShift:
        c = self.config
        return ContextShift(
            c.n_inputs,
            c.pert_dim,
            n_references=c.n_references,
            n_directions=c.n_directions,
            n_coordinates=n_coordinates(self.specs),
        )

    def _make_further_shift(self) -> FurtherShift:
        c = self.config
        return FurtherShift(c.n_further, c.pert_dim, n_references=c.n_references)

    def set_context_shift(self, state: Mapping[str, Tensor]) -> None:
        """Install a context shift that was solved for; the configuration takes its sizes from the tensors."""
        n_references, n_directions = len(state["points"]), state["basis"].shape[1]
        self.config = replace(self.config, n_references=n_references, n_directions=n_directions)
        self.context_shift = self._make_context_shift()
        self.context_shift.load_state_dict(state)
        self.further_shift = None if self.further_shift is None else self._make_further_shift()

    def train(self, mode: bool = True) -> StateTransition:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but a frozen backbone stays in ``eval``, except for the dropout of its adapters."""
        super().train(mode)
        if mode and not any(p.requires_grad for n, p in self.transformer_backbone.named_parameters() if _is_base(n)):
            train_adapters_only(self.transformer_backbone)
        return self

    def _tokens(
        self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor], batch: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode cells alone, and with perturbation, covariates and batch, ``(n_sets, n_cells, hidden)`` each."""
        n_sets, n_cells, _ = control.shape  # B sets, N cells, G features; D hidden
        basal = self.basal_encoder(control)  # (B, N, D)
        tokens = basal + self.pert_encoder(pert).unsqueeze(1)  # (B, D) -> (B, 1, D)
        if self.covariate_encoder is not None:
            flat = {name: values.reshape(-1) for name, values in covariates.items()}  # (B, N) -> (B N,)
            tokens = tokens + self.covariate_encoder(flat).view(n_sets, n_cells, -1)  # (B N, D) -> (B, N, D)
        if self.batch_encoder is not None:
            if batch is None:
                msg = "This network has a table of batches and needs the code of every cell's batch: batch=."
                raise ValueError(msg)
            tokens = tokens + self.batch_encoder(batch)  # (B, N) -> (B, N, D)
        return basal, tokens

    def _mix(self, tokens: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the backbone over the cells and the tokens beside them: cells, confidence, batch scores."""
        n_sets, n_cells, _ = tokens.shape  # (B, N, D)
        before = [] if self.batch_token is None else [self.batch_token.token(n_sets)]
        after = [] if self.confidence_token is None else [self.confidence_token.token(n_sets)]
        mixed = self.transformer_backbone(torch.cat([*before, tokens, *after], dim=1) if before or after else tokens)
        # mixed: (B, [1 +] N [+ 1], D), the batch token first and the confidence token last
        confidence = None if self.confidence_token is None else self.confidence_token(mixed[:, -1])  # (B, D) -> (B,)
        batch_scores = None if self.batch_classifier is None else self.batch_classifier(mixed[:, 0])
        return mixed[:, len(before) : len(before) + n_cells], confidence, batch_scores

    def represent(
        self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor], batch: Tensor | None = None
    ) -> Tensor:
        """Represent cells before the head, ``(n_sets, n_cells, hidden)``. Arguments as in :meth:`forward`."""
        return self._mix(self._tokens(control, pert, covariates, batch)[1])[0]

    def forward(
        self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor], batch: Tensor | None = None
    ) -> Prediction:
        """Predict perturbed cells.

        Parameters
        ----------
        control
            Control cells, log1p expression or an embedding, ``(n_sets, n_cells, n_inputs)``.
        pert
            Perturbation vector of each set, ``(n_sets, pert_dim)``.
        covariates
            Codes or standardised values of each cell, ``(n_sets, n_cells)`` each.
        batch
            Code of each cell's batch, int64 ``(n_sets, n_cells)``, for a network with a table of batches; others ignore
            it.

        Raises
        ------
        ValueError
            If the network has a table of batches and `batch` is None.
        """
        basal, tokens = self._tokens(control, pert, covariates, batch)
        mixed, confidence, batch_scores = self._mix(tokens)
        if self.shift is not None:
            change = self.project_out(mixed)  # (B, N, D) -> (B, N, G)
            shift = self.common_shift(control.mean(dim=1), pert, covariates).unsqueeze(1)  # (B, G) -> (B, 1, G)
            total = shift + change
            cells = move_expression(control, total) if self.config.non_negative else control + total
        else:
            if self.final_down_then_up is not None:
                cells = self.final_down_then_up(self.project_out(mixed) + control)
            else:
                cells = self.project_out(mixed + basal if self.config.residual == "latent" else mixed)
            if self.config.non_negative:
                cells = cells.relu()
            change = cells - control
        return Prediction(cells, change, confidence, batch_scores)

    def common_shift(self, control_mean: Tensor, pert: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Compute the shift that all cells of a set share, ``(n_sets, n_inputs)``.

        Parameters
        ----------
        control_mean
            Mean of the control cells of each set, ``(n_sets, n_inputs)``.
        pert, covariates
            As in :meth:`forward`.
        """
        assert self.shift is not None  # only with an output residual
        return pert @ self.shift + self.context_shift(control_mean, pert, covariate_coordinates(covariates, self.specs))

    def move_further(self, further: Tensor, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """Predict the genes that the network does not read, ``(n_sets, n_cells, n_further)``.

        Parameters
        ----------
        further
            Control cells over these genes, log1p, ``(n_sets, n_cells, n_further)``.
        control, pert, covariates
            As in :meth:`forward`.
        """
        assert self.further_shift is not None  # only with further genes
        coordinates = covariate_coordinates(covariates, self.specs)
        similarity = self.context_shift.similarity(control.mean(dim=1), pert, coordinates)
        shift = self.further_shift(further.mean(dim=1), pert, similarity, self.context_shift.slope)
        return move_expression(further, shift.unsqueeze(1).expand_as(further))  # (B, G) -> (B, N, G)

    def decode(self, cells: Tensor) -> Tensor:
        """Decode predicted cells to log1p expression, ``(..., n_decoded)``; a ValueError without a decoder."""
        if self.gene_decoder is None:
            msg = "This network has no gene decoder."
            raise ValueError(msg)
        return self.gene_decoder(cells)


def move_expression(control: Tensor, change: Tensor) -> Tensor:
    """Change the expression of cells and keep it non-negative: half by scaling the expression, half by adding to it.

    Adding a change and clipping at zero cannot lower a gene in cells that do not express it, so that the mean falls too
    little, and raises a gene equally in all cells, so that they vary too little. Scaling the cells of the set by
    ``1 + change / mean`` changes their mean by exactly the change, and their spread with it; but a gene that is hardly
    expressed would rise in the few cells that express it only, so scaling contributes at most half of the present
    expression to a rise. With half of each, neither fault dominates.

    Parameters
    ----------
    control
        log1p expression of sets of cells, ``(n_sets, n_cells, n_genes)``.
    change
        Change of each cell, of the same shape.

    Returns
    -------
    log1p expression of the changed cells, never negative; equal to the control where the change is zero.
    """
    mean = control.mean(dim=1, keepdim=True) + _TINY  # (B, N, G) -> (B, 1, G)
    share = 0.5 * mean / torch.maximum(change, mean)
    # With slope one at exactly zero, where relu has none, the model can learn that an unexpressed gene rises.
    return torch.lerp(clamp_min(control + change, 0), control * clamp_min(1 + change / mean, 0), share)


def _is_base(name: str) -> bool:
    """Whether a parameter belongs to the backbone itself rather than to an adapter or hyper-connection."""
    return "lora_" not in name and ".mixing." not in name


def _mlp(n_in: int, n_out: int, n_layers: int, *, hidden: int, dropout: float, activation: str) -> nn.Sequential:
    """Linear layers with activation and dropout between them, numbered as in Arc's models: 0, 3, 6, ..."""
    widths = [n_in, *[hidden] * (n_layers - 1), n_out]
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for wide, narrow in pairwise(widths[1:]):
        layers += [_ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(wide, narrow)]
    return nn.Sequential(*layers)
