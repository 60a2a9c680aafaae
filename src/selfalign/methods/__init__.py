"""The methods: the loops, each on one screen."""
