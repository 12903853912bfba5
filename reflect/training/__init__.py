"""Training: teacher data, distillation, GRPO and the training loop."""
