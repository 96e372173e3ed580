"""Networks only: SAM's parts, the encoders and the zoo that names them. No training, no files, no prompt sampling.

Use     `from frisket.models.zoo import build`; nothing here needs lightning, wandb, deepspeed or flash-attn.
Source  our choice.
"""
