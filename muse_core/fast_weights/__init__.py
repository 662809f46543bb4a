"""Fast weights with filters on the absolute period grid."""
