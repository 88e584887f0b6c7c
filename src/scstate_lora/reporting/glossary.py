"""The words of the page explained: one glossary, and the links from a word to its explanation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scstate_lora.metrics.baselines import CEILING
from scstate_lora.metrics.registry import METRICS, metric_label

if TYPE_CHECKING:
    from markupsafe import Markup

_WORDS = {
    "AUROC": "Probability that a cell of one kind scores above one of the other. 1 tells them apart, 0.5 is chance.",
    "adapted embedding": "Every cell as a list of numbers, from the base model after it was adapted to your "
    "covariates.",
    "base": "The model that embeds cells before it is adapted to your covariates.",
    "baseline": "A prediction without any model, which a model has to beat to be worth its trouble.",
    "batch": "Cells that were handled together, for instance those of one donor.",
    CEILING: "Called replicate here: how well one half of the measured cells predicts the other half.",
    "change": "Mean log expression of perturbed cells minus that of the control cells of the same context.",
    "context": "What is kept apart when cells are compared: here the cell type, and what else sets were formed by.",
    "context mean": "Baseline: the average training cell of the context, whatever was done to it.",
    "FDR": "False discovery rate: the expected share of wrong ones among the genes called. 5 % unless it says "
    "otherwise.",
    "confidence": "Probability that a label is right, as the model states it, calibrated on cells that were left out.",
    "held out": "Kept from all training, so that a score on these cells tells how the model does on new ones.",
    "kNN": "The commonest label of the nearest training cells.",
    "left-out batches": "Batches of labelled cells that were kept from the fit in turn, as a new sample is.",
    "left-out cells": "Labelled cells that were kept from the fit in turn.",
    "linear": "Baseline: a ridge regression of the change on the control cells' mean and on the perturbation.",
    "linear start": "Regularised logistic regression on expression, from which the classifier of cells starts.",
    "logistic regression": "A linear classifier of expression: the simple method that is hardest to beat for labels.",
    "macro F1": "Mean over the types of F1, which counts cells that are missed and labels that are wrong; rare types "
    "count as much as common ones.",
    "majority": "The commonest label, for every cell.",
    "mean effect": "Baseline: the control cells plus the average change of all perturbations of the training.",
    "mean shift": "Baseline: the control cells plus the average change of the other contexts of the training.",
    "no change": "Baseline: the perturbation does nothing, so the control cells are the prediction.",
    "paired difference": "Model minus baseline on the same target or context, so that what both find hard cancels.",
    "PCA": "Principal components of the log expression of the same cells: an embedding without any model.",
    "perturbed mean": "Baseline: the average perturbed profile of the training contexts, for every cell.",
    "replicate": "One half of the measured cells against the other, each with controls of its own, corrected to the "
    "full number of cells: about what a repeated experiment would score.",
    "simple baseline": "The best of a few predictions without a model (no change, mean effect, mean shift, "
    "perturbed mean, context mean, linear), chosen by leaving out training cells, so that the cells of the test do "
    "not choose it.",
    "skill": "Where a score lies between the simple baseline (0) and a replicate of the experiment (1). Below 0 the "
    "baseline is better.",
    "unknown score": "How uncertain a cell is, and how far from all known types, in units of their usual spread. 0 is "
    "usual.",
    "UMAP": "A drawing of an embedding in two dimensions. Neighbours stay neighbours; distances between groups mean "
    "little.",
    "validation": "Cells that are not trained on, by which the training is watched.",
    "95 % interval": "Range of the value when contexts or targets are drawn anew (bootstrap). Two whose difference "
    "has an interval without 0 do differ.",
}  # fmt: skip
_METRICS = {
    "pearson_delta": "Correlation, over all genes, of the predicted and the measured change. 1 is right, 0 is "
    "guessing.",
    "pearson_delta_top20": "The same over the 20 genes with the largest measured change.",
    "pearson_delta_top50": "The same over the 50 genes with the largest measured change.",
    "mae": "Mean absolute error of the predicted mean expression, over the genes, in log units.",
    "mse": "Mean squared error of the predicted mean expression, over the genes.",
    "e_distance": "Energy distance between the predicted and the measured cells, as clouds of points. 0 is the same "
    "cloud.",
    "variance_ratio": "Spread of the predicted cells over that of the measured ones. Near 0 all predicted cells are "
    "alike.",
    "mse_de_weighted": "Squared error in which genes that surely change count more.",
    "mmd": "Maximum mean discrepancy: another distance between two clouds of cells.",
    "nearest_distance_relative": "Distance from a predicted cell to the nearest measured one, over the distance "
    "between measured cells. Below 1, predictions are copies or averages.",
    "de_overlap50": "Share of the 50 most changed measured genes that are among the 50 most changed predicted ones.",
    "de_direction50": "Share of the 50 most changed measured genes that are predicted to move the measured way.",
    "de_precision50": "Share of the 50 most changed predicted genes that change in the measured cells, FDR under 5 %.",
    "e_distance_centered": "Energy distance after both clouds are moved to their means: compares shapes only.",
    "sd_ratio": "Standard deviation per gene, predicted over measured.",
    "sd_r2": "How well the standard deviation of every gene is predicted. 1 is right, below 0 is worse than one for "
    "all.",
    "detection_r2": "How well the share of cells that express a gene is predicted.",
    "detection_mae": "Mean absolute error of the share of cells that express a gene.",
    "cell_cov_corr": "Whether genes that change vary together from cell to cell as they do in the measured cells.",
    "pds_cosine": "Whether a predicted effect is nearer in direction to its own measured effect than to those of other "
    "perturbations. 1 is right, 0.5 is guessing.",
    "expr_mse_unbiased_capped_norm": "Squared error over the squared effect, without the noise of sampling. 0 is "
    "right, 1 is as good as predicting no effect.",
    "direction_fidelity_yield": "Genes called on both sides that move the measured way, over the larger number of "
    "called genes.",
    "direction_reach": "How far down the predicted list, in the order of confidence, nine of ten directions are right.",
    "sig_jaccard": "Genes called on both sides over the genes called on either.",
    "lfc_nmae": "Error of the log fold changes over their size, in the genes that change. 1 is as good as "
    "predicting none.",
    "pearson_delta_centroid": "Correlation of the changes against the mean of all perturbations, so that what they "
    "have in common does not count.",
    "centroid_accuracy": "Share of the other perturbations' mean cells that are farther from the prediction than "
    "its own.",
    "hit_recall_budget": "Share of the perturbations with the largest effects that are among those predicted to "
    "have them.",
    "hit_recall_fdr10": "Largest share of the perturbations with an effect that is found with one in ten of those "
    "found wrong.",
    "discrimination": "Whether a predicted effect is nearer to its own measured effect than to those of other "
    "perturbations.",
    "knn_accuracy": "Share of cells whose nearest other cells in the embedding have the same label.",
    "probe_accuracy": "Share of cells whose label a linear classifier reads from the embedding, in cells it has not "
    "seen.",
    "probe_balanced_accuracy": "The same with every label counting alike.",
    "probe_r2": "How well a linear model reads a number from the embedding, in cells it has not seen.",
    "isolated_labels": "Whether cell types of few batches stand apart in the embedding.",
    "nmi_kmeans": "Agreement of k-means clusters with cell types, by mutual information.",
    "ari_kmeans": "Agreement of k-means clusters with cell types, by pairs of cells.",
    "silhouette_label": "How far apart cell types are, compared with their own spread.",
    "clisi": "How pure the neighbourhood of a cell is in cell types.",
    "bras": "How well batches overlap within each cell type.",
    "ilisi": "How many batches the neighbourhood of a cell holds.",
    "kbet": "Share of neighbourhoods whose mixture of batches is that of all cells.",
    "graph_connectivity": "Whether the cells of a type hang together across batches.",
    "pcr_comparison": "How much less of the embedding's variance batches explain than of the PCA's.",
    "silhouette_batch": "How well batches overlap, by the silhouette of scIB.",
    "bio_conservation": "Mean of the scIB scores of how well cell types are kept.",
    "batch_correction": "Mean of the scIB scores of how well batches are mixed.",
    "scib_total": "0.6 of the bio conservation plus 0.4 of the batch correction.",
}  # fmt: skip


def glossary() -> dict[str, str]:
    """Return all explained words with their explanations, metrics under their labels."""
    metrics = {metric_label(name): meaning for name, meaning in _METRICS.items() if name in METRICS}
    return {**_WORDS, **metrics}


class Explainer:
    """Links the words of the glossary in texts to their explanations, and keeps which it met."""

    def __init__(self) -> None:
        self._terms = glossary()
        self.used: set[str] = set()
        longest_first = sorted(self._terms, key=len, reverse=True)
        # A word ends where no letter or figure goes on; a plural is the same word.
        self._pattern = re.compile(rf"(?<![\w.'-])({'|'.join(map(re.escape, longest_first))})(?=s?(?![\w'-]))")

    def __call__(self, text: str) -> Markup:
        """Escape a text, and link the first mention of every word of the glossary."""
        from markupsafe import Markup, escape

        parts: list[str] = []
        seen: set[str] = set()
        end = 0
        for match in self._pattern.finditer(text):
            term = match[0]
            if term in seen:
                continue
            seen.add(term)
            self.used.add(term)
            link = Markup('<a class="term" href="#{}" title="{}">{}</a>').format(
                anchor_of(term), self._terms[term], term
            )
            parts += [escape(text[end : match.start()]), link]
            end = match.end()
        return Markup("").join([*parts, escape(text[end:])])

    def entries(self) -> list[tuple[str, str, str]]:
        """Return anchor, word and explanation of the words met so far, and of those in their explanations."""
        while True:
            further = {m[0] for term in self.used for m in self._pattern.finditer(self._terms[term])} - self.used
            if not further:
                break
            self.used |= further
        return [(anchor_of(t), t, self._terms[t]) for t in sorted(self.used, key=str.lower)]


def anchor_of(term: str) -> str:
    """Name the place of a word in the glossary."""
    return "word-" + re.sub(r"[^a-z0-9]+", "-", term.lower().replace("²", "2")).strip("-")
