"""Trials: random withholding of lessons and their measured effect."""
