"""Trains a student from a teacher: data, rollouts, methods, trainer, evaluation."""
