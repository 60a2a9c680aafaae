"""The live page: runs as they go, their rows, their models to compare and talk to, and votes on them."""
