"""The transition model: sets of control cells and a perturbation in, sets of perturbed cells out."""
