"""Scripted and linear policies, and the data sets they make."""
