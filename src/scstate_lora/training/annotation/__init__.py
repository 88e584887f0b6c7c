"""Training of classifiers of cells."""
