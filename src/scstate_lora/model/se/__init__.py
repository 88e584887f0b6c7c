"""The embedding model: a frozen SE base, adapters on it, and conditioning on covariates."""
