"""Entropy coding: range coders of symbols, and the probability tables that they use."""
