"""Measures of how good a judge or a policy is."""
