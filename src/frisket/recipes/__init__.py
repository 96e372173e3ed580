"""One file = one stage of one paper. The folder is the registry: `recipe: train_sam` names `recipes/train_sam.py`."""
