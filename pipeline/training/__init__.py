"""Training: what is drawn from clips, the noise it gets, the loss, the optimizer and one step of all of it.

Nothing here knows files or Ray: it runs wherever torch, diffusers and transformers do.
"""
