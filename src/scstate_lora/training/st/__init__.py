"""Training of STTransition: loss terms, and the shift that is solved for before any step."""
