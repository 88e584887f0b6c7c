"""Networks in plain torch: the SE encoder, covariates, conditioning, LoRA, the ST model."""
