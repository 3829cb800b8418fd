"""Floor 1: one edit on one device. Needs torch, diffusers and transformers, never a cluster or a store.

Nothing is imported here: cameras and rankings should not wait for diffusers to load.
"""
