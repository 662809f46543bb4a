"""Published sequence mixers as layers."""
