"""Planted faults: each changes one thing in the training's own code while a candidate trains.

`known` were there while the judge's rules were made, `blind` were written after a first freeze and have been seen
since, `frozen` were written after the last one and nothing was tuned to them.
"""
