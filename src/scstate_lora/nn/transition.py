"""The State Transition (ST) network: a set of control cells and a perturbation to the set of perturbed cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from scstate_lora.nn.backbones import BackboneConfig, make_backbone
from scstate_lora.nn.context_shift import ContextShift, n_coordinates, places
from scstate_lora.nn.covariates import MultiCovariateEncoder
from scstate_lora.nn.gene_decoder import GeneDecoder
from scstate_lora.nn.lora import train_adapters_only
from scstate_lora.nn.set_tokens import BatchToken, ConfidenceToken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.nn.covariates import CovariateSpec

_TINY = 1e-4
"""Mean expression below which a gene counts as not expressed."""
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
        Width of a cell: genes, or columns of an embedding.
    pert_dim
        Numbers that describe a perturbation.
    hidden, n_layers, n_heads, head_dim, intermediate, backbone
        Of the backbone, as in :func:`~scstate_lora.nn.backbones.make_backbone`.
    dropout
        In encoders and head, while training. The backbone has none, as in published models.
    n_encoder_layers, n_decoder_layers, activation
        Linear layers of the encoders and of the head, and what is between them.
    basal_mlp
        Whether cells are encoded by as many layers as perturbations; otherwise by one.
    residual
        ``"output"``: the head gives the change of each cell, zero at first. ``"latent"``: it gives the cell, from its
        representation after the backbone plus that before. ``"none"``: from that after the backbone alone.
    non_negative
        Whether predicted cells are expression, which is never below zero.
    n_decoded
        Genes decoded from a predicted embedding; None for no decoder.
    decoder_dims, decoder_dropout, decoder_residual
        Of that decoder, as in :class:`~scstate_lora.nn.gene_decoder.GeneDecoder`.
    down_up
        Whether two more layers, through an eighth of the width, make the cell of the control plus what the head gives,
        as in some of Arc's models; with ``residual="latent"``.
    n_batches
        Rows of a table of batches, whose entry is added to every cell (Arc's models); None for none.
    batch_classes
        Batches to tell apart from a token before the cells; None for no such token.
    confidence_token
        Whether a token after the cells predicts the loss.
    n_references, n_directions
        Of the :class:`~scstate_lora.nn.context_shift.ContextShift`, with ``residual="output"``.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, sizes: Mapping[str, Any]) -> STConfig:
        """Rebuild from :meth:`to_dict`, also after JSON, which knows no tuples."""
        return cls(**{**sizes, "decoder_dims": tuple(sizes.get("decoder_dims", (512,)))})


class Prediction(NamedTuple):
    """What the network says of sets of cells."""

    cells: Tensor
    """The cells perturbed, as they went in: ``(n_sets, n_cells, n_inputs)``."""
    change: Tensor
    """Change of each cell beyond the shift of its perturbation, ``(n_sets, n_cells, n_inputs)``."""
    confidence: Tensor | None
    """Loss that the network expects of each set, ``(n_sets,)``; None without that token."""
    batch_scores: Tensor | None
    """Scores of the batches of each set, ``(n_sets, batch_classes)``; None without that token."""


class StateTransition(nn.Module):
    """Set-to-set model of a perturbation (after Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135).

    With ``residual="output"``: prediction = control + shift of the perturbation in the context + change of the cell.
    The shift is linear in what describes the perturbation, with what contexts alike showed besides; the change comes
    from a transformer over the set, which reads each cell, the perturbation and the covariates. Shift and head start at
    zero, so an untrained model says exactly "no change", and differences between cells are kept. Training first solves
    for the shift: the transformer learns what that leaves. Expression moves as :func:`move_expression` says.

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
        # Solved for, and not trained by gradient, which would let the contexts that train draw it their way.
        self.register_buffer("shift", torch.zeros(c.pert_dim, c.n_inputs) if c.residual == "output" else None)
        if c.residual == "output":
            nn.init.zeros_(self.project_out[-1].weight)  # type: ignore[arg-type]  # the last layer is linear
            nn.init.zeros_(self.project_out[-1].bias)  # type: ignore[arg-type]  # as above
            self.context_shift = ContextShift(
                c.n_inputs,
                c.pert_dim,
                n_references=c.n_references,
                n_directions=c.n_directions,
                n_coordinates=n_coordinates(specs),
            )
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

    def set_context_shift(self, config: STConfig, state: Mapping[str, Tensor]) -> None:
        """Put in place what was solved for; `config` has its sizes."""
        self.config = config
        self.context_shift = ContextShift(
            config.n_inputs,
            config.pert_dim,
            n_references=config.n_references,
            n_directions=config.n_directions,
            n_coordinates=n_coordinates(self.specs),
        )
        self.context_shift.load_state_dict(state)

    def train(self, mode: bool = True) -> StateTransition:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but a frozen backbone stays in ``eval``, its adapters' dropout excepted."""
        super().train(mode)
        if mode and not any(p.requires_grad for n, p in self.transformer_backbone.named_parameters() if _is_base(n)):
            train_adapters_only(self.transformer_backbone)
        return self

    def _tokens(
        self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor], batch: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode cells alone, and with all that is known of them, ``(n_sets, n_cells, hidden)`` each."""
        n_sets, n_cells, _ = control.shape
        basal = self.basal_encoder(control)
        tokens = basal + self.pert_encoder(pert).unsqueeze(1)
        if self.covariate_encoder is not None:
            flat = {name: values.reshape(-1) for name, values in covariates.items()}
            tokens = tokens + self.covariate_encoder(flat).view(n_sets, n_cells, -1)
        if self.batch_encoder is not None:
            if batch is None:
                msg = "This network has a table of batches and needs the code of every cell's batch: batch=."
                raise ValueError(msg)
            tokens = tokens + self.batch_encoder(batch)
        return basal, tokens

    def _mix(self, tokens: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the backbone over the cells and what stands beside them: cells, confidence, scores of batches."""
        n_sets, n_cells, _ = tokens.shape
        before = [] if self.batch_token is None else [self.batch_token.token(n_sets)]
        after = [] if self.confidence_token is None else [self.confidence_token.token(n_sets)]
        mixed = self.transformer_backbone(torch.cat([*before, tokens, *after], dim=1) if before or after else tokens)
        confidence = None if self.confidence_token is None else self.confidence_token(mixed[:, -1])
        batch_scores = None if self.batch_classifier is None else self.batch_classifier(mixed[:, 0])
        return mixed[:, len(before) : len(before) + n_cells], confidence, batch_scores

    def represent(
        self, control: Tensor, pert: Tensor, covariates: Mapping[str, Tensor], batch: Tensor | None = None
    ) -> Tensor:
        """Representation of cells before the head, ``(n_sets, n_cells, hidden)``. Arguments as in :meth:`forward`."""
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
            What describes each set's perturbation, ``(n_sets, pert_dim)``.
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
            change = self.project_out(mixed)
            whole = self.common_shift(control.mean(dim=1), pert, covariates).unsqueeze(1) + change
            cells = move_expression(control, whole) if self.config.non_negative else control + whole
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
        """Shift of all cells of sets, ``(n_sets, n_inputs)``, by the mean of each set's control cells."""
        assert self.shift is not None  # only with an output residual
        return pert @ self.shift + self.context_shift(control_mean, pert, places(covariates, self.specs))

    def decode(self, cells: Tensor) -> Tensor:
        """log1p expression of predicted cells, ``(..., n_decoded)``; a ValueError where there is no decoder."""
        if self.gene_decoder is None:
            msg = "This network has no gene decoder."
            raise ValueError(msg)
        return self.gene_decoder(cells)


def move_expression(control: Tensor, change: Tensor) -> Tensor:
    """Change the expression of cells so that it stays expression: half by scaling what is there, half by adding.

    Adding a change and cutting at zero keeps a gene that falls from falling in cells without it, so the mean falls too
    little, and lets genes rise alike in all cells, which then vary too little. Scaling the set's cells by
    ``1 + change / mean`` changes their mean by just the change, and their spread along with it; of a gene that is
    hardly expressed it could only make few cells high, so the share of a rise that is made by scaling is at most half
    of what is there. Half of each is what neither fault dominates in.

    Parameters
    ----------
    control
        log1p expression of sets of cells, ``(n_sets, n_cells, n_genes)``.
    change
        Change of each cell, of the same shape.

    Returns
    -------
    log1p expression of the cells changed, never negative; the control itself where the change is zero.
    """
    mean = control.mean(dim=1, keepdim=True) + _TINY
    share = 0.5 * mean / torch.maximum(change, mean)
    scaled = control * (1 + change / mean).clamp(min=0)
    # clamp, not relu: its slope at exactly zero is one, so an unexpressed gene can be learned to rise.
    return torch.lerp(torch.clamp(control + change, min=0), scaled, share)


def _is_base(name: str) -> bool:
    """Whether a parameter of the backbone is its own, and of no adapter or hyper-connection."""
    return "lora_" not in name and ".mixing." not in name


def _mlp(n_in: int, n_out: int, n_layers: int, *, hidden: int, dropout: float, activation: str) -> nn.Sequential:
    """Linear layers with activation and dropout between them, numbered as in Arc's models: 0, 3, 6, ..."""
    widths = [n_in, *[hidden] * (n_layers - 1), n_out]
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for wide, narrow in pairwise(widths[1:]):
        layers += [_ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(wide, narrow)]
    return nn.Sequential(*layers)
