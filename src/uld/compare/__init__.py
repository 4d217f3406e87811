"""`uld compare`: a grid of methods, splits, seeds and ablations, trained and evaluated cell by cell."""
