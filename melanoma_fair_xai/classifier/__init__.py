"""timm classifiers: create, calibrate, export, predict."""
