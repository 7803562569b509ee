"""Batches, the training loop, pre-training and fine-tuning."""
