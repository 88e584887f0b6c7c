"""Parts of the simulated wound: eleven cell types, their marker genes, and the gene programmes of healing."""

from __future__ import annotations

LINEAGES: dict[str, tuple[str, ...]] = {
    "epithelial": ("keratinocyte",),
    "mesenchymal": ("fibroblast", "myofibroblast", "pericyte"),
    "vascular": ("endothelial",),
    "myeloid": ("macrophage", "monocyte", "dendritic", "neutrophil"),
    "lymphoid": ("T cell",),
    "neural": ("Schwann",),
}
"""Cell types by lineage; types of one lineage share part of their expression."""

CELL_TYPES: tuple[str, ...] = tuple(cell_type for members in LINEAGES.values() for cell_type in members)

CELL_TYPE_MARKERS: dict[str, tuple[str, ...]] = {
    "keratinocyte": ("Krt5", "Krt14", "Krt1", "Krt10", "Krtdap", "Perp"),
    "fibroblast": ("Pdgfra", "Dcn", "Lum", "Dpt", "Clec3b", "Pi16"),
    "myofibroblast": ("Acta2", "Tagln", "Postn", "Cthrc1", "Lrrc15", "Myl9"),
    "pericyte": ("Rgs5", "Pdgfrb", "Kcnj8", "Abcc9", "Notch3", "Higd1b"),
    "endothelial": ("Pecam1", "Cdh5", "Cldn5", "Emcn", "Egfl7", "Kdr"),
    "macrophage": ("Adgre1", "C1qa", "C1qb", "Csf1r", "Apoe", "Mertk"),
    "monocyte": ("Ly6c2", "Ccr2", "Plac8", "Vcan", "F13a1", "Ms4a4c"),
    "dendritic": ("Cd209a", "Flt3", "H2-Ab1", "Cd74", "Itgax", "Xcr1"),
    "neutrophil": ("S100a8", "S100a9", "Csf3r", "Retnlg", "Cxcr2", "Mmp8"),
    "T cell": ("Cd3d", "Cd3e", "Trac", "Trbc2", "Cd2", "Lck"),
    "Schwann": ("Plp1", "Mpz", "Sox10", "Mbp", "S100b", "Cdh19"),
}

PROGRAMMES: dict[str, tuple[str, ...]] = {
    "inflammation": (
        *("Il1b", "Tnf", "Il6", "Il1a", "Cxcl1", "Cxcl2", "Ccl2", "Ccl3", "Ccl4", "Ptgs2", "Nfkbia", "Tnfaip3"),
        *("Sod2", "Icam1", "Saa3", "Lcn2", "S100a8", "S100a9"),
    ),
    "interferon": ("Ifit1", "Ifit3", "Isg15", "Irf7", "Stat1", "Ifitm3", "Rsad2", "Bst2", "Ifi27l2a", "Oasl2"),
    "stress": ("Vegfa", "Slc2a1", "Ldha", "Pgk1", "Bnip3", "Hmox1", "Hspa1a", "Hspa1b", "Dnajb1", "Ddit4"),
    "proliferation": (
        *("Mki67", "Top2a", "Cdk1", "Ccnb1", "Pcna", "Mcm5", "Tyms", "Birc5", "Ube2c", "Stmn1", "Hmgb2", "Cenpf"),
    ),
    "remodelling": (
        *("Col1a1", "Col1a2", "Col3a1", "Col5a1", "Fn1", "Mmp9", "Mmp2", "Mmp14", "Timp1", "Lox", "Sparc", "Tnc"),
        *("Ccn2", "Tgfb1", "Bgn", "Acta2"),
    ),
    "M1": ("Nos2", "Cd86", "Cd80", "Fcgr1", "Il12b", "Cxcl9", "Cxcl10", "Tlr2", "Il23a"),
    "M2": ("Arg1", "Mrc1", "Cd163", "Retnla", "Chil3", "Il10", "Clec10a", "Igf1", "Folr2"),
}
"""Genes that rise when a programme is active."""

HOME: dict[str, tuple[str, float]] = {"inflammation": ("myeloid", 0.4), "remodelling": ("mesenchymal", 1.2)}
"""Lineage that expresses a programme's genes even at rest, and by how much more than others (log fold change)."""

TRENDS: dict[str, int] = {"inflammation": -1, "stress": -1, "proliferation": -1, "remodelling": 1, "M1": -1, "M2": 1}
"""Direction of a programme from day 10 to day 19 of undisturbed (sham) healing; interferon has no trend."""

MACROPHAGE_PROGRAMMES = ("M1", "M2")
"""The two ends of the polarisation axis; active in macrophages only."""

SENSORS: dict[str, tuple[str, ...]] = {
    "inflammation": ("Il1r1", "Tnfrsf1a", "Tlr4", "Il6ra"),
    "interferon": ("Ifnar1", "Ifnar2", "Ifngr1", "Jak1"),
    "stress": ("Hsf1", "Epas1", "Keap1", "Trp53"),
    "proliferation": ("Egfr", "Fgfr1", "Igf1r", "Met"),
    "remodelling": ("Tgfbr1", "Tgfbr2", "Itgav", "Smad3"),
    "M1": ("Ifngr2", "Tlr9", "Irf5"),
    "M2": ("Il4ra", "Stat6", "Il13ra1"),
}
"""Genes whose expression sets how strongly a cell responds to a programme; the programmes do not change them."""

SENSITIVITY: dict[str, dict[str, float]] = {
    #                inflammation, interferon, stress, proliferation, remodelling (in logits, about -2 to 2), M1, M2
    "keratinocyte": dict(zip(SENSORS, (-0.2, 0.2, 1.6, 1.8, -1.2, -1.0, -1.0), strict=True)),
    "fibroblast": dict(zip(SENSORS, (0.3, -0.8, 0.2, 0.6, 1.8, -1.0, -0.5), strict=True)),
    "myofibroblast": dict(zip(SENSORS, (-0.8, -1.4, -0.6, 0.0, 2.0, -1.0, -0.8), strict=True)),
    "pericyte": dict(zip(SENSORS, (-1.2, -0.4, 0.8, -0.8, 0.6, -1.2, -1.0), strict=True)),
    "endothelial": dict(zip(SENSORS, (0.8, 1.0, 1.2, 1.2, -0.4, -1.0, -0.8), strict=True)),
    "macrophage": dict(zip(SENSORS, (1.8, 1.0, -0.2, -1.0, 0.2, 0.8, 1.2), strict=True)),
    "monocyte": dict(zip(SENSORS, (2.0, 1.6, -1.0, -0.4, -1.4, 0.4, 0.2), strict=True)),
    "dendritic": dict(zip(SENSORS, (0.8, 2.0, -1.4, 0.2, -1.8, 0.4, 0.4), strict=True)),
    "neutrophil": dict(zip(SENSORS, (1.6, 0.4, 0.6, -2.0, -1.8, 0.0, -1.0), strict=True)),
    "T cell": dict(zip(SENSORS, (-1.2, 1.4, -1.6, 1.0, -2.0, 0.2, -0.2), strict=True)),
    "Schwann": dict(zip(SENSORS, (-2.0, -1.6, 0.0, -0.6, -0.8, -1.2, -1.2), strict=True)),
}
"""Mean sensitivity of a cell type to each programme, before the cell's own deviation from it."""

RELATIVES: dict[str, str] = {
    "fibroblast": "myofibroblast",
    "myofibroblast": "fibroblast",
    "pericyte": "myofibroblast",
    "macrophage": "monocyte",
    "monocyte": "macrophage",
    "dendritic": "monocyte",
}
"""The type towards which some cells of a type are in transition, so that the two form a continuum."""

LIBRARY_FACTOR: dict[str, float] = {"keratinocyte": 1.4, "macrophage": 1.2, "neutrophil": 0.6, "T cell": 0.7}
"""Library size of a type relative to the requested depth; 1 if not listed."""

HOUSEKEEPING: tuple[str, ...] = (
    *("Actb", "Gapdh", "Malat1", "Eef1a1", "Tmsb4x", "B2m", "Fth1", "Ppia", "Tpt1", "Ubb"),
    *("Rplp0", "Rpl13", "Rps18", "Rps27a", "mt-Co1", "mt-Nd1", "mt-Cytb", "mt-Atp6"),
)

CORE_GENES: tuple[str, ...] = tuple(
    dict.fromkeys(
        gene
        for table in (CELL_TYPE_MARKERS, PROGRAMMES, SENSORS, {"housekeeping": HOUSEKEEPING})
        for genes in table.values()
        for gene in genes
    )
)
"""Every gene with a name and a role, once each; the other simulated genes are background (``Gm10001`` and on)."""


def gene_names(n_genes: int) -> list[str]:
    """List the symbols of the simulated genes: the core first, then background."""
    return [*CORE_GENES, *(f"Gm{10001 + i}" for i in range(n_genes - len(CORE_GENES)))]


def gene_roles() -> dict[str, str]:
    """Map each core gene to a programme's name, ``marker``, ``sensor`` or ``housekeeping``, the first that fits."""
    roles = dict.fromkeys(HOUSEKEEPING, "housekeeping")
    roles |= {gene: "sensor" for genes in SENSORS.values() for gene in genes}
    roles |= {gene: "marker" for genes in CELL_TYPE_MARKERS.values() for gene in genes}
    roles |= {gene: programme for programme, genes in PROGRAMMES.items() for gene in genes}
    return roles
