"""`setup_anndata`: one call from an AnnData to both models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scstate_lora.config import DataConfig
from scstate_lora.data.register import choose_modality, register, undone_on_error

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.data.fields import CovariateKeys
    from scstate_lora.data.split_files import SplitFile
    from scstate_lora.model.se.covariate_se import LoRACovariateSE
    from scstate_lora.model.st.transition import STTransition


class Models(NamedTuple):
    """The models of one experiment."""

    se: LoRACovariateSE
    """Embeddings that know the covariates."""
    st: STTransition | None
    """Perturbation prediction; None without ``pert_key``."""


def setup_anndata(
    adata: AnnData | MuData,
    *,
    covariate_keys: CovariateKeys = (),
    pert_key: str | None = None,
    control: str | float | bool | None = None,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    context_keys: Sequence[str] | None = None,
    layer: str | None = None,
    input_scale: str | None = None,
    target_sum: float | None = None,
    gene_key: str | None = None,
    embed_key: str | None = None,
    modality: str | None = None,
    holdout: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    split_key: str | None = None,
    split: str | os.PathLike[str] | Mapping[str, Any] | SplitFile | None = None,
    split_dataset: str | None = None,
    zeroshot_controls: Literal["held_out", "train"] = "held_out",
    test_size: float = 0.2,
    val_size: float = 0.1,
    base: Any = None,
    seed: int = 0,
) -> Models:
    """Validate and register an experiment, and make the models for it. Nothing is trained yet.

    Parameters
    ----------
    adata
        Cells x genes, counts or log1p values; may be a view, backed, sparse or dense. Or a MuData with ``modality``.
    covariate_keys
        Columns of ``adata.obs`` that describe a cell's condition. One key; a list of keys; a mapping from key to
        ``"categorical"``, ``"continuous"``, None or options; or a list of options with a ``name``. Options are a dict
        or a :class:`scstate_lora.config.CovariateConfig`: ``type``, ``num_categories`` (checked against the data),
        ``embed_dim`` (width of the covariate's own vector in LoRACovariateSE, 256), ``allow_missing`` (missing values
        are "unknown" and no error) and ``continuous_encoder`` (``hidden_dim``, ``output_dim``, ``activation``). Without
        a declared kind, numeric columns with more than 8 different values are continuous, all others categorical.
        Numbers are standardised. For a MuData see the notes.
    pert_key, control
        Column of the perturbation and its unperturbed level; both or neither. A number means the level of that name.
    cell_type_key
        Column of the cell type.
    batch_key
        Column of the batch.
    context_keys
        Columns within whose combinations perturbed cells are compared to controls. By default the cell type and every
        covariate that groups cells, the perturbation excepted. Missing values that are allowed form a group.
    layer
        Layer of the expression; ``adata.X`` by default.
    input_scale
        ``"counts"`` or ``"log1p"``; by default decided once, from all of the matrix.
    target_sum
        Sum to which the counts of each cell are normalised before log1p: 10,000 by default. log1p values stay as they
        are by default, and are converted to this sum if theirs is known, because all cells had one sum before log1p.
    gene_key
        Column of ``adata.var`` with gene names; ``adata.var_names`` by default.
    embed_key
        An embedding in ``adata.obsm`` to work from, of any origin: ``(n_cells, n_columns)``, at least 2 columns,
        finite; an array, a sparse matrix or a table.
    modality
        Which modality of a MuData.
    holdout
        Conditions whose cells no model may see in training, for instance
        ``{"cell_type": "B cells", "condition": "stim"}``, or a list of such; a list of values stands for any of them.
        By default a random share of the cells is held out.
    split_key
        Column of ``adata.obs`` with ``train``, ``val`` and ``test``, in place of ``holdout``.
    split
        TOML file of cell types (``[zeroshot]``) and perturbations within them (``[fewshot]``) that validate or test, as
        Arc's cell-load reads it, in place of ``holdout``: its path, a dict of its sections, or a
        :class:`scstate_lora.data.split_files.SplitFile`. Needs ``cell_type_key``. Control cells of a ``[fewshot]`` cell
        type train. A perturbation listed in both ``val`` and ``test`` goes to test. Without a ``val`` entry,
        ``val_size`` of the training cells validate.
    split_dataset
        Which dataset of ``split`` these cells belong to; required if it splits several.
    zeroshot_controls
        ``"held_out"``: all cells of a context that is held out as a whole are, its controls too. ``"train"``: its
        controls train. A context is held out as a whole by ``[zeroshot]``, or by a condition of ``holdout`` that does
        not name ``pert_key``.
    test_size, val_size
        Share of the cells held out at random, stratified by context and perturbation, and share of the remaining cells
        that validate.
    base
        Pretrained SE base: a published checkpoint (a folder, a ``.ckpt``, a ``model.safetensors`` or a hub id), a
        directory that ``LoRACovariateSE.save`` or ``SEBase.save`` wrote, or an ``SEBase``. None: a compact base is
        trained on these cells.
    seed
        Seed of the split, of initialisation and of training.

    Returns
    -------
    The named pair ``(se, st)``; ``st`` is None without ``pert_key``.

    Raises
    ------
    TypeError
        If ``adata``, the matrix or the embedding is of the wrong type, or a covariate holds dates.
    KeyError
        If a key is not in ``adata.obs``, ``adata.var``, ``adata.layers`` or ``adata.obsm``, or a modality or a column
        of it does not exist; near names are suggested.
    ValueError
        If an argument is not allowed; values are missing, infinite or negative; the control or a level is absent, or
        absent from the training cells; no context has both perturbed and control cells, or enough of them; a covariate
        has one level only, or another number of levels than declared; its options are unknown or contradict each other;
        names are not unique; ``input_scale`` contradicts the values; the base or a split file does not fit the data; or
        a split file cannot be read.
    FileNotFoundError
        If no base, or no split file, exists at the given path.

    Warns
    -----
    UserWarning
        If a context has perturbed cells but no control cells, or a perturbation too few training cells: perturbations
        are learned without these.

    Notes
    -----
    Nothing is written when an error is raised. Otherwise adds to ``adata``:
    ``adata.uns["scstate_lora"]["registry"]`` (JSON), ``adata.obs["scstate_split"]`` and
    ``adata.uns["scstate_lora"]["split"]``: the ``table`` of cells by context, perturbation and split that is printed
    too, its ``source``, and its ``rules`` (JSON).

    Of a MuData, ``"prot:donor"`` means the column ``donor`` of ``mdata["prot"].obs`` or, as a covariate, the values of
    the variable ``donor`` in ``mdata["prot"].X`` (continuous unless declared otherwise); a key that the modality's own
    ``obs`` lacks means a column of ``mdata.obs``. Cells are matched by name; absent ones have missing values.
    The values are copied to the ``obs`` of the modality that is set up, under the key as written: the models work with
    that AnnData alone, and new cells must hold the same columns.

    Examples
    --------
    >>> import scstate_lora as ssl
    >>> adata = ssl.datasets.wound_healing()
    >>> se, st = ssl.setup_anndata(
    ...     adata,
    ...     covariate_keys=["condition", "timepoint"],
    ...     pert_key="condition",
    ...     control="sham",
    ...     cell_type_key="cell_type",
    ... )
    """
    arguments = {name: value for name, value in locals().items() if name in DataConfig.model_fields}
    config = DataConfig.parse(arguments, name="setup_anndata()")
    with undone_on_error(choose_modality(adata, modality)):
        cells = register(adata, config, seed=seed)
        # Imported now, as torch takes seconds to load: a mistaken column is named at once.
        from scstate_lora.model.se.covariate_se import LoRACovariateSE
        from scstate_lora.model.st.transition import STTransition

        se = LoRACovariateSE(cells.adata, base=base, seed=seed)
        return Models(se, STTransition(cells.adata, seed=seed) if cells.registry.pert_key is not None else None)
