"""The ReBRAC update in compiled code."""
