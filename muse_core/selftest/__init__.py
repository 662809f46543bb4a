"""Promises about failures and the experiments that test them."""
