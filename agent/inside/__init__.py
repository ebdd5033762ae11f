"""Turns the values of a start or staging message into those of the container manager. Pure.

It makes the environment, the limits, the egress rules and the start script, for the containers of apps and of stagings.
"""
