"""Recovery fine-tuning of pruned models: alone, or between the stages of a gradual schedule.

A recovered model is no one-shot result: it is recorded with what its training took, and ranked apart.
"""
