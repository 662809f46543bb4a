"""A bounded potential with a learned decay: a potential for MUSE."""
