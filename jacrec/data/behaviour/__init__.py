"""Scripted and linear behaviour policies, and the data sets generated with them."""
